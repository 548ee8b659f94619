"""Model ids: what a user may write, and what it stands for."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.errors import UnknownModelError, UnservableModelError
from langchain_car_vllm.models.catalog import PREFIX, CatalogEntry, catalog, normalize
from langchain_car_vllm.models.families import UNKNOWN, family_facts
from langchain_car_vllm.models.local_folders import (
    MODEL_MARK,
    folder_called,
    near_folders,
    tell_beside,
)
from langchain_car_vllm.models.model_files import (
    file_error,
    is_file,
    list_folder,
    load_object,
    read_object,
)
from langchain_car_vllm.models.repository_names import (
    copied_repository,
    is_repository,
    read_spelling,
)
from langchain_car_vllm.models.servable import GGUF, find_other_format
from langchain_car_vllm.paths import absolute_path

_LOCAL = re.compile(r"^(/|\./|\.\./|~|\.{1,2}$)")
_NEAREST = 3
_LIKENESS = 0.5
_SHORTEST_STEM = 3
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
    if read_files and not has_prefix:
        _check_not_a_folder(text)
    if is_repository(name):
        return _hub_model(name, name, catalog().by_repository(name))
    raise _unknown(text, name, has_prefix=has_prefix)


def is_path(text: str) -> bool:
    """Return whether a text is a path by its beginning."""
    return _LOCAL.match(text) is not None


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


def _unknown(text: str, name: str, *, has_prefix: bool) -> UnknownModelError:
    """Return the error for a name that is none, with what may be meant."""
    spelled = read_spelling(name)
    if spelled is None:
        return UnknownModelError(text, _why_not(name, has_prefix), nearest=nearest_ids(text))
    repository, revision, tag = spelled
    if any(said.lower().endswith("gguf") for said in (repository, name)):
        near = nearest_ids(re.sub(r"[-_.]?gguf$", "", repository, flags=re.IGNORECASE))
        refused = UnknownModelError(text, GGUF.reason, nearest=near)
        refused.hint = refused.hint if near else GGUF.hint
        return refused
    near = (nearest_ids(text) if tag else ()) or (repository,)
    why = "a Hub repository is written `<org>/<repo>`"
    if revision is None:
        return UnknownModelError(text, why, nearest=near)
    hint = f'did you mean `{repository}` with `revision="{revision}"`?'
    return _refusal(text, why, hint, near)


def _why_not(name: str, has_prefix: bool) -> str:  # noqa: FBT001
    if "/" in name:
        return "a Hub repository is written `<org>/<repo>`"
    if has_prefix:
        return "the catalog has no model of that name"
    return f"it starts with neither `{PREFIX}` nor an organisation nor a path"


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
        found = file_error(path, error)
        raise _refusal(text, found.message, found.hint) from error
    except (OSError, ValueError) as error:
        raise _missing_directory(text, path) from error
    if is_file(path):
        raise _misnamed(text, path, f"`{path}` is not a directory", [path.name])
    try:
        load_object(path / MODEL_MARK)
    except UnservableModelError as error:
        if not error.is_missing:
            raise _refusal(text, error.message, error.hint) from error
        names = _names_in(path)
        raise _misnamed(text, path, f"`{path}` has no `config.json`", names) from error


def _misnamed(text: str, path: Path, detail: str, names: Iterable[str]) -> UnknownModelError:
    """Return the error for what is there and no folder of a model."""
    copied = next(filter(None, map(copied_repository, (path.name, path.parent.name))), None)
    if copied is not None:
        return UnknownModelError(
            text, f"the Hub's cache keeps the copies of `{copied}` there", nearest=(copied,)
        )
    if near := near_folders(path, MODEL_MARK):
        return UnknownModelError(text, detail, nearest=near)
    obstacle = find_other_format(set(names), lambda name: read_object(path / name))
    if obstacle is not None:
        return _refusal(text, obstacle.reason, obstacle.hint)
    needed = "name a folder with `config.json`, a tokenizer and `model*.safetensors`"
    return _refusal(text, detail, needed)


def _names_in(folder: Path) -> Iterable[str]:
    try:
        return list_folder(folder)
    except UnservableModelError:
        return ()


def _missing_directory(text: str, path: Path) -> UnknownModelError:
    """Return the error for a path that is not there, with what is there."""
    near = near_folders(path, MODEL_MARK)
    error = UnknownModelError(text, f"there is no directory `{path}`", nearest=near)
    if not near:
        error.hint = tell_beside(path, MODEL_MARK, "model")
    return error


def _check_not_a_folder(text: str) -> None:
    """Refuse a name that is a model's folder here and may be a repository on the Hub."""
    folder = folder_called(text, MODEL_MARK)
    if folder is None:
        return
    name = text.rstrip("/")
    is_both = is_repository(name) and folder == f"./{name}"
    why = "it may be a repository, but a folder here has the same name"
    error = UnknownModelError(text, why if is_both else "it is the path of a folder here")
    repository = f" The repository is `{PREFIX}{name}`" if is_both else ""
    error.hint = f"did you mean `{folder}`?{repository}"
    raise error


def _refusal(
    text: str, detail: str, hint: str | None, nearest: tuple[str, ...] = ()
) -> UnknownModelError:
    """Return an error whose hint is another than its nearest ids."""
    refused = UnknownModelError(text, detail, nearest=nearest)
    refused.hint = hint
    return refused


def _hub_model(name: str, repository: str, entry: CatalogEntry | None) -> ModelId:
    model = ModelId(name, repository, is_local=False)
    if entry is None:
        return model
    return model._replace(context_window=entry.context_window, capabilities=entry.capabilities)
