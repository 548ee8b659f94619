"""Finding a model that is on this machine already, without any network."""

import re
import stat
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from langchain_car_vllm import environment
from langchain_car_vllm.errors import ConfigurationError, UnservableModelError
from langchain_car_vllm.models.config import is_multimodal
from langchain_car_vllm.models.hub_account import expand, hub_home
from langchain_car_vllm.models.lm_studio import lm_studio_folders
from langchain_car_vllm.models.model_files import (
    bounded_integer,
    file_error,
    is_file,
    list_folder,
    read_bytes,
    read_object,
)
from langchain_car_vllm.models.remote_code import CODE
from langchain_car_vllm.models.weights import (
    INDEX,
    MEDIA_WEIGHTS,
    TEXT_WEIGHTS,
    indexed_shards,
    is_plain,
    is_weight,
    missing_shards,
)

_DEFAULT_REVISION = "main"
# What the server fetches of a repository on both its routes (vllm-mlx 0.6.0, `utils/download.py`).
_NEEDED = ("*.json", "tokenizer.model", "tiktoken.model", "*.tiktoken", "*.txt", "*.jinja")
_SERVERS_OWN = (*_NEEDED, "*.jsonl", "*.model", "*.py")
TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
)
TOKENIZER_SUFFIX = ".tiktoken"
_COMMIT = re.compile(r"[\w][\w.\-]{0,127}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./\-]{0,255}", re.ASCII)
_MOST_BYTES = 2**60


def find_snapshot(source: str, revision: str | None = None, *, trust: bool = False) -> Path | None:
    """Return the complete local copy of a model, None where there is none.

    Looked at, in this order: the directory itself where `source` is a path, the Hub cache
    (`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `~/.cache/huggingface`), and for the default
    revision LM Studio's folder. A copy that an interrupted download left behind is not complete:
    the Hub's own listing of the commit is asked where huggingface_hub kept it (since 1.22), else
    the index of the weights.

    Args:
        source: A Hub repository, or a directory.
        revision: A branch, tag or commit; None is the default branch.
        trust: Whether the code that the model brings belongs to it.

    Raises:
        UnservableModelError: A copy may be there, and this user may not look.
    """
    if source.startswith("/"):
        directory = Path(source)
        return directory if _is_there(directory / "config.json") else None
    return _in_hub_cache(source, revision or _DEFAULT_REVISION, trust=trust) or (
        _in_lm_studio(source) if revision is None else None
    )


def hub_cache() -> Path | None:
    """Return the folder of the Hub cache by the Hub's own rules, None without a home."""
    if value := environment.HF_HUB_CACHE.read() or environment.HUGGINGFACE_HUB_CACHE.read():
        return expand(value)
    home = hub_home()
    return home / "hub" if home else None


def repository_folder(source: str) -> Path | None:
    """Return where the Hub cache keeps a repository, whether it is there or not."""
    cache = hub_cache()
    return cache / f"models--{source.replace('/', '--')}" if cache else None


def is_in_hub_cache(snapshot: Path, source: str) -> bool:
    """Return whether a local copy is the one that the server finds by the repository's name."""
    folder = repository_folder(source)
    return folder is not None and folder in snapshot.parents


def served_source(snapshot: Path, source: str, revision: str | None = None) -> str:
    """Return what `vllm-mlx serve` is given to serve a local copy, and nothing else.

    Its repository's name, if the Hub's client finds the copy by that and takes it for whole; it
    does not where files are left out that the server would have fetched, such as code.
    """
    if revision is not None or not is_in_hub_cache(snapshot, source):
        return str(snapshot)
    listing = tree_listing(snapshot.parents[1], snapshot.name)
    weights = (TEXT_WEIGHTS, MEDIA_WEIGHTS)
    for name in listing or ():
        if any(fnmatch(name, pattern) for pattern in (*_SERVERS_OWN, *weights)) and not is_file(
            snapshot / name
        ):
            return str(snapshot)
    return source


def _is_there(path: Path) -> bool:
    """Return whether there is a regular file.

    Raises:
        UnservableModelError: Nobody may look.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError as error:
        raise file_error(path, error) from error
    except (OSError, ValueError):
        return False


def _in_hub_cache(source: str, revision: str, *, trust: bool) -> Path | None:
    folder = repository_folder(source)
    commit = find_commit(source, revision)
    if folder is None or commit is None:
        return None
    snapshot = folder / "snapshots" / commit
    if not _is_there(snapshot / "config.json"):
        return None
    listing = tree_listing(folder, commit)
    if listing is not None:
        return snapshot if _holds_all(snapshot, listing, trust=trust) else None
    return snapshot if holds_model(snapshot) else None


def find_commit(source: str, revision: str | None = None) -> str | None:
    """Return the commit that the Hub cache has for a revision, None where none can be meant.

    What stands in the cache is somebody else's text: nothing but the name of a folder is taken.

    Raises:
        UnservableModelError: There may be one, and this user may not look.
    """
    folder, revision = repository_folder(source), revision or _DEFAULT_REVISION
    if folder is None or not _REVISION.fullmatch(revision) or ".." in revision:
        return None
    commit = _read_branch(folder / "refs" / revision).strip() or revision
    return commit if _COMMIT.fullmatch(commit) and ".." not in commit else None


def _read_branch(file: Path) -> str:
    try:
        return read_bytes(file, most=1000).decode("utf-8", errors="replace")
    except UnservableModelError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        return ""


def check_revision(revision: str) -> None:
    """Refuse what cannot be a branch, a tag or a commit.

    Raises:
        ConfigurationError: It cannot.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ConfigurationError(
            f"`revision` cannot be `{revision}`",
            hint="name a branch, a tag or a commit, or leave it out for the default branch",
        )


def _in_lm_studio(source: str) -> Path | None:
    for folder in lm_studio_folders():
        directory = folder / source
        if holds_model(directory) and not any(
            fnmatch(name, "*.part*") for name in list_folder(directory)
        ):
            return directory
    return None


def holds_model(directory: Path) -> bool:
    """Return whether a directory holds all parts of a model, judged by the index of its weights."""
    if not _is_there(directory / "config.json"):
        return False
    if not (
        any(_is_there(directory / name) for name in TOKENIZERS)
        or any(name.endswith(TOKENIZER_SUFFIX) for name in list_folder(directory))
    ):
        return False
    sizes = list_folder(directory)
    files = {name for name in sizes if is_weight(name, MEDIA_WEIGHTS) and sizes[name] is not None}
    if shards := indexed_shards(read_object(directory / INDEX), files):
        return all(_is_there(directory / name) for name in shards)
    # The weights' own names speak of no more of them; the index may come last.
    return bool(files) and not missing_shards(files)


def tree_listing(folder: Path, commit: str) -> dict[str, Mapping[str, Any]] | None:
    """Return what huggingface_hub recorded of a commit's files (format version 1) by name.

    Args:
        folder: Of the repository in the Hub cache.
        commit: The commit.
    """
    found = read_object(folder / "trees" / f"{commit}.json")
    files = found.get("files") if found else None
    if not isinstance(files, dict):
        return None
    return {
        name: entry
        for name, entry in files.items()
        if is_plain(name) and isinstance(entry, dict) and listed_size(entry) is not None
    }


def listed_size(entry: Mapping[str, Any]) -> int | None:
    """Return a file's size by its entry in a listing, None where that makes no sense."""
    return bounded_integer(entry.get("size"), 0, _MOST_BYTES)


def _holds_all(snapshot: Path, listing: Mapping[str, Mapping[str, Any]], *, trust: bool) -> bool:
    wanted = wanted_files(snapshot, listing, trust=trust)
    if not any(name.endswith(".safetensors") for name in wanted):
        return False
    try:
        return all(
            (snapshot / name).stat().st_size == listed_size(listing[name]) for name in wanted
        )
    except OSError:
        return False


def wanted_files(snapshot: Path, names: Iterable[str], *, trust: bool = False) -> list[str]:
    """Return which files of a repository are fetched.

    Args:
        snapshot: Where they come to lie; the `config.json` there tells the server's route.
        names: All files of the repository.
        trust: Whether code belongs to them.
    """
    config = read_object(snapshot / "config.json") or {}
    return wanted_names(names, multimodal=is_multimodal(config), trust=trust)


def wanted_names(names: Iterable[str], *, multimodal: bool, trust: bool = False) -> list[str]:
    """Return which files of a repository are fetched, by the server's route.

    Args:
        names: All files of the repository.
        multimodal: Whether that is the one for media.
        trust: Whether code belongs to them.
    """
    weights = MEDIA_WEIGHTS if multimodal else TEXT_WEIGHTS
    patterns = (*_NEEDED, CODE) if trust else _NEEDED
    return [
        name
        for name in names
        if is_weight(name, weights) or any(fnmatch(name, pattern) for pattern in patterns)
    ]
