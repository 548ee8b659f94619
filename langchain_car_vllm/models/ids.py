"""Model ids: what a user may write, and what it stands for."""

import difflib
import os
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.errors import UnknownModelError, UnservableModelError
from langchain_car_vllm.models.catalog import PREFIX, CatalogEntry, catalog, normalize
from langchain_car_vllm.models.families import UNKNOWN, family_facts
from langchain_car_vllm.models.model_files import file_error, is_file, load_object
from langchain_car_vllm.paths import absolute_path

_LOCAL = re.compile(r"^(/|\./|\.\./|~|\.{1,2}$)")
# The Hub's own rule for repository names (huggingface_hub, `validate_repo_id`).
_REPOSITORY = re.compile(r"^\b[\w\-.]+\b/\b[\w\-.]+\b$", re.ASCII)
_LONGEST_REPOSITORY = 96
# What is compiled here, each use needs; the others serve errors alone.
_ADDRESSES = (
    (
        r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)"
        r"/(?!(?:datasets|spaces|collections|docs|papers)/)([^/\s]+/[^/?#\s]+)"
    ),
    r"(?!vllm-mlx/)([^/\s]+/[^/@\s]+)@[^/\s]+$",
)
"""A repository's page, and a repository with a revision as other programs write it."""
_NEAREST = 3
_LIKENESS = 0.5
_SHORTEST_STEM = 3
_MOST_ENTRIES = 1000
# Such as `4b`, `e2b` and `a3b`; `4bit` is not a size.
_SIZE = r"(?<![a-z0-9.])[ea]?\d+(?:\.\d+)?b(?![a-z])"


class ModelId(NamedTuple):
    """A model as it is served.

    Attributes:
        name: The name on the wire: the canonical id without `vllm-mlx/`, or an absolute path.
        source: What `vllm-mlx serve` is given: a Hub repository or an absolute directory.
        is_local: Whether `source` is a directory.
        context_window: Tokens that prompt and answer share, where the catalog says so.
        capabilities: The catalog's words for what the model can do.
    """

    name: str
    source: str
    is_local: bool
    context_window: int | None = None
    capabilities: tuple[str, ...] = ()


def parse_model_id(text: str | os.PathLike[str], *, read_files: bool = True) -> ModelId:
    """Return what a model id stands for, without any network.

    Args:
        text: `vllm-mlx/<catalog name>` (`:4bit` and `-4bit` mean the same, case does not matter),
            `[vllm-mlx/]<org>/<repo>` on the Hub, or a directory: a path object, or a text that
            starts with `/`, `./`, `../` or `~`.
        read_files: Whether to look into a directory, which blocks; without it any is believed.

    Raises:
        UnknownModelError: It is none of these, or the directory has no model in it; names the
            nearest ids.
    """
    text = written(text).strip()
    if not text:
        raise UnknownModelError(text, "it is empty")
    if _LOCAL.match(text):
        return _local_model(text, read_files=read_files)
    has_prefix = text.lower().startswith(PREFIX)
    name = text[len(PREFIX) :] if has_prefix else text
    if has_prefix and (entry := catalog().by_name(name)):
        return _hub_model(entry.name, entry.repository, entry)
    if is_repository(name):
        if read_files and not has_prefix:
            _check_not_a_folder(text, name)
        return _hub_model(name, name, catalog().by_repository(name))
    near = _named_by_address(text) or nearest_ids(text)
    raise UnknownModelError(text, _why_not(name, has_prefix=has_prefix), nearest=near)


def written(model: str | os.PathLike[str]) -> str:
    """Return a model id as text: a path object is a path, also where it begins like a name."""
    if isinstance(model, str):
        return model
    text = os.fspath(model)
    return text if _LOCAL.match(text) else f"./{text}"


def anchor_path(model: str) -> str:
    """Return a model id that means the same wherever the program goes: no path is relative.

    Raises:
        ValueError: It is relative to a directory that is gone.
    """
    text = model.strip()
    return absolute_path(text) if text.startswith(".") else model


def is_repository(name: str) -> bool:
    """Return whether a name has the form of a Hub repository, `org/repo`."""
    return (
        len(name) <= _LONGEST_REPOSITORY
        and _REPOSITORY.match(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def _named_by_address(text: str) -> tuple[str, ...]:
    """Return the repository whose page on the Hub was pasted, or that stands before a revision."""
    found = [match[1] for address in _ADDRESSES if (match := re.match(address, text))]
    return tuple(name for name in found if is_repository(name))


def nearest_ids(text: str) -> tuple[str, ...]:
    """Return the known ids that look most like a text, best first, at most three.

    Only the last part is compared: organisations and the prefix would outweigh the name. A size in
    the text counts first, then whether a name begins like it.
    """
    known = dict.fromkeys([*(PREFIX + e.name for e in catalog().entries), *catalog().repositories])
    scored = [(score, name) for name in known if (score := _likeness(_short(text), _short(name)))]
    scored.sort(key=lambda entry: entry[0], reverse=True)
    by_short: dict[str, str] = {}
    for _, name in scored:
        by_short.setdefault(_short(name), name)
    return tuple(by_short.values())[:_NEAREST]


def _likeness(text: str, name: str) -> tuple[bool, bool, float] | None:
    """Return how well a name fits a text, None where it does not."""
    sizes = set(re.findall(_SIZE, text))
    stem = _letters(re.sub(_SIZE, "", text))
    begins = len(stem) >= _SHORTEST_STEM and _letters(name).startswith(stem)
    ratio = difflib.SequenceMatcher(None, text, name).ratio()
    family = family_facts(text)
    is_relative = family is not UNKNOWN and family.name == family_facts(name).name
    if not (begins or is_relative or ratio >= _LIKENESS):
        return None
    return bool(sizes) and sizes <= set(re.findall(_SIZE, name)), begins, ratio


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text)


def _short(name: str) -> str:
    return normalize(name).rstrip("/").rsplit("/", 1)[-1]


def _why_not(name: str, *, has_prefix: bool) -> str:
    if "/" not in name:
        if has_prefix:
            return "the catalog has no model of that name"
        return f"it starts with neither `{PREFIX}` nor an organisation nor a path"
    return "a Hub repository is written `<org>/<repo>`"


def _local_model(text: str, *, read_files: bool) -> ModelId:
    try:
        path = Path(absolute_path(text))
    except ValueError as error:
        raise UnknownModelError(text, str(error)) from error
    if read_files:
        _check_directory(text, path)
    return ModelId(name=str(path), source=str(path), is_local=True)


def _check_directory(text: str, path: Path) -> None:
    try:
        os.lstat(path)
    except PermissionError as error:  # it may be there all the same
        raise _refusal(text, file_error(path, error)) from error
    except (OSError, ValueError) as error:
        raise _missing_directory(text, path) from error
    if is_file(path):
        raise UnknownModelError(text, f"`{path}` is not a directory")
    _check_config(text, path / "config.json")


def _missing_directory(text: str, path: Path) -> UnknownModelError:
    """Return the error for a path that is not there, with what is there."""
    near = _neighbours(path.parent, path.name)
    error = UnknownModelError(text, f"there is no directory `{path}`", nearest=near)
    if not near:
        models = ", ".join(f"`{name}`" for name in _models_in(path.parent)[:_NEAREST])
        state = "exists, and holds no model" if os.path.isdir(path.parent) else "is missing as well"  # noqa: PTH112 - takes any text
        error.hint = f"`{path.parent}` {f'holds {models}' if models else state}"
    return error


def _neighbours(folder: Path, name: str) -> tuple[str, ...]:
    """Return the models in a folder whose names look like another, at most three."""
    found = difflib.get_close_matches(name.lower(), _models_in(folder), n=_NEAREST, cutoff=0.4)
    return tuple(str(folder / match) for match in found)


def _models_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that hold a `config.json`."""
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, _MOST_ENTRIES)]
        return sorted(name for name in names if is_file(folder / name / "config.json"))
    return []


def _check_not_a_folder(text: str, name: str) -> None:
    """Refuse a name that is a model's folder here and may be a repository on the Hub."""
    if is_file(Path(name) / "config.json"):
        error = UnknownModelError(text, "it may be a repository, and a folder here is called that")
        error.hint = f"did you mean `./{name}`? The repository is `{PREFIX}{name}`"
        raise error


def _check_config(text: str, config: Path) -> None:
    try:
        load_object(config)
    except UnservableModelError as error:
        if not error.is_missing:
            raise _refusal(text, error) from error
        inside = tuple(str(config.parent / name) for name in _models_in(config.parent)[:_NEAREST])
        missing = UnknownModelError(
            text, f"`{config.parent}` holds no `config.json`", nearest=inside
        )
        if not inside:
            missing.hint = "name a folder with `config.json`, a tokenizer and `model*.safetensors`"
        raise missing from error


def _refusal(text: str, error: UnservableModelError) -> UnknownModelError:
    """Return the error for a directory whose files cannot be read."""
    refused = UnknownModelError(text, error.message)
    refused.hint = error.hint
    return refused


def _hub_model(name: str, repository: str, entry: CatalogEntry | None) -> ModelId:
    model = ModelId(name, repository, is_local=False)
    if entry is None:
        return model
    return model._replace(context_window=entry.context_window, capabilities=entry.capabilities)
