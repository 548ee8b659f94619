"""Finding a model that is on this machine already, without any network."""

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from langchain_car_vllm import environment, paths
from langchain_car_vllm.models.facts import is_multimodal
from langchain_car_vllm.models.json_files import read_object

_DEFAULT_REVISION = "main"
# What the server fetches of a repository on both its routes (vllm-mlx 0.6.0, `utils/download.py`),
# and the weights that it fetches on the one for text and on the one for media.
_NEEDED = ("*.json", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
_TEXT_WEIGHTS = "model*.safetensors"
_MEDIA_WEIGHTS = "*.safetensors"
_SHARD = re.compile(r"(.*?)\d+-of-(\d+)\.safetensors$")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")


def find_snapshot(source: str, revision: str | None = None) -> Path | None:
    """Return the complete local copy of a model, None where there is none.

    Looked at, in this order: the directory itself where `source` is a path, the Hub cache
    (`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `~/.cache/huggingface`), and for the default
    revision LM Studio's folder. A copy that an interrupted download left behind is not complete:
    the Hub's own listing of the commit is asked where huggingface_hub kept it (since 1.22), else
    the index of the weights.

    Args:
        source: A Hub repository, or a directory.
        revision: A branch, tag or commit; None is the default branch.
    """
    if source.startswith("/"):
        directory = Path(source)
        return directory if (directory / "config.json").is_file() else None
    return _in_hub_cache(source, revision or _DEFAULT_REVISION) or (
        _in_lm_studio(source) if revision is None else None
    )


def hub_cache() -> Path | None:
    """Return the folder of the Hub cache by the Hub's own rules, None without a home."""
    if value := environment.HF_HUB_CACHE.read() or environment.HUGGINGFACE_HUB_CACHE.read():
        return _expanded(value)
    if value := environment.HF_HOME.read():
        return _expanded(value) / "hub"
    if value := environment.XDG_CACHE_HOME.read():
        return _expanded(value) / "huggingface" / "hub"
    base = paths.home()
    return base / ".cache" / "huggingface" / "hub" if base else None


def repository_folder(source: str) -> Path | None:
    """Return where the Hub cache keeps a repository, whether it is there or not."""
    cache = hub_cache()
    return cache / f"models--{source.replace('/', '--')}" if cache else None


def is_in_hub_cache(snapshot: Path, source: str) -> bool:
    """Return whether a local copy is the one that the server finds by the repository's name."""
    folder = repository_folder(source)
    return folder is not None and folder in snapshot.parents


def _expanded(value: str) -> Path:
    return Path(os.path.expandvars(value)).expanduser()


def _in_hub_cache(source: str, revision: str) -> Path | None:
    folder = repository_folder(source)
    if folder is None:
        return None
    commit = _text(folder / "refs" / revision) or revision
    snapshot = folder / "snapshots" / commit
    if not (snapshot / "config.json").is_file():
        return None
    listing = _listing(folder / "trees" / f"{commit}.json")
    if listing is not None:
        return snapshot if _holds_all(snapshot, listing) else None
    return snapshot if holds_model(snapshot) else None


def _in_lm_studio(source: str) -> Path | None:
    base = paths.home()
    if base is None:
        return None
    for folder in (".lmstudio/models", ".cache/lm-studio/models"):
        directory = base / folder / source
        if holds_model(directory) and not any(directory.glob("*.part*")):
            return directory
    return None


def holds_model(directory: Path) -> bool:
    """Return whether a directory holds all parts of a model, judged by the index of its weights."""
    if not (directory / "config.json").is_file():
        return False
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        return False
    index = read_object(directory / "model.safetensors.index.json")
    if index is None:
        return _holds_all_shards(directory)
    weights = index.get("weight_map")
    names = set(weights.values()) if isinstance(weights, dict) else set()
    return bool(names) and all((directory / str(name)).is_file() for name in names)


def _holds_all_shards(directory: Path) -> bool:
    """Return whether the weights' own names speak of no more of them; the index may come last."""
    files = {path.name for path in directory.glob("*.safetensors") if path.is_file()}
    counted = [match for match in map(_SHARD.match, files) if match]
    return bool(files) and all(
        f"{match[1]}{number:0{len(match[2])}}-of-{match[2]}.safetensors" in files
        for match in counted
        for number in range(1, int(match[2]) + 1)
    )


def _listing(path: Path) -> dict[str, int] | None:
    """Return file sizes by name, as huggingface_hub recorded them (format version 1)."""
    found = read_object(path)
    files = found.get("files") if found else None
    if not isinstance(files, dict):
        return None
    return {
        name: entry["size"]
        for name, entry in files.items()
        if isinstance(entry, dict) and isinstance(entry.get("size"), int)
    }


def _holds_all(snapshot: Path, listing: dict[str, int]) -> bool:
    wanted = wanted_files(snapshot, listing)
    try:
        return bool(wanted) and all(
            (snapshot / name).stat().st_size == listing[name] for name in wanted
        )
    except OSError:
        return False


def wanted_files(snapshot: Path, names: Iterable[str]) -> list[str]:
    """Return which files of a repository the server fetches.

    Args:
        snapshot: Where they come to lie; the `config.json` there tells the server's route.
        names: All files of the repository.
    """
    config = read_object(snapshot / "config.json") or {}
    weights = _MEDIA_WEIGHTS if is_multimodal(config) else _TEXT_WEIGHTS
    patterns = (*_NEEDED, weights)
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
