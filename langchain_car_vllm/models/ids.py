"""Model ids: what a user may write, and what it stands for."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from langchain_car_vllm.errors import UnknownModelError, UnservableModelError
from langchain_car_vllm.models.catalog import PREFIX, CatalogEntry, catalog, normalized
from langchain_car_vllm.models.families import family_facts
from langchain_car_vllm.models.model_files import load_object

_LOCAL = re.compile(r"^(/|\./|\.\./|~|\.{1,2}$)")
# The Hub's own rule for repository names (huggingface_hub, `validate_repo_id`).
_REPOSITORY = re.compile(r"^\b[\w\-.]+\b/\b[\w\-.]+\b$", re.ASCII)
_LONGEST_REPOSITORY = 96
_NEAREST = 3
_LIKENESS = 0.5


@dataclass(frozen=True, slots=True)
class ModelId:
    """A model as it is served.

    Attributes:
        name: The name on the wire: the canonical id without `vllm-mlx/`, or an absolute path.
        source: What `vllm-mlx serve` is given: a Hub repository or an absolute directory.
        is_local: Whether `source` is a directory.
        family: The family, as far as the name tells.
        context_window: Tokens that prompt and answer share, where the catalog says so.
        size_mb: Weights on disk in MB, where the catalog says so.
        ram_mb: Memory in MB that the catalog asks for.
        capabilities: The catalog's words for what the model can do.
    """

    name: str
    source: str
    is_local: bool
    family: str | None = None
    context_window: int | None = None
    size_mb: int | None = None
    ram_mb: int | None = None
    capabilities: tuple[str, ...] = ()


def parse_model_id(text: str, *, read_files: bool = True) -> ModelId:
    """Return what a model id stands for, without any network.

    Args:
        text: `vllm-mlx/<catalog name>` (`:4bit` and `-4bit` mean the same, case does not matter),
            `[vllm-mlx/]<org>/<repo>` on the Hub, or a directory that starts with `/`, `./`, `../`
            or `~`.
        read_files: Whether to look into a directory, which blocks; without it any is believed.

    Raises:
        UnknownModelError: It is none of these, or the directory holds no model; names the nearest
            ids.
    """
    text = text.strip()
    if not text:
        raise UnknownModelError(text, "it is empty")
    if _LOCAL.match(text):
        return _local_model(text, read_files=read_files)
    has_prefix = text.lower().startswith(PREFIX)
    name = text[len(PREFIX) :] if has_prefix else text
    if has_prefix and (entry := catalog().by_name(name)):
        return _catalog_model(entry)
    if is_repository(name):
        return _hub_model(name)
    raise UnknownModelError(text, _why_not(name, has_prefix=has_prefix), nearest=nearest_ids(text))


def is_repository(name: str) -> bool:
    """Return whether a name has the form of a Hub repository, `org/repo`."""
    return (
        len(name) <= _LONGEST_REPOSITORY
        and _REPOSITORY.match(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def nearest_ids(text: str) -> tuple[str, ...]:
    """Return the known ids that look most like a text, best first, at most three.

    Only the last part is compared: organisations and the prefix would outweigh the name.
    """
    known = [PREFIX + entry.name for entry in catalog().entries]
    known += catalog().repositories
    by_short: dict[str, str] = {}
    for name in known:
        by_short.setdefault(_short(name), name)
    matches = difflib.get_close_matches(_short(text), by_short, n=_NEAREST, cutoff=_LIKENESS)
    return tuple(by_short[match] for match in matches)


def _short(name: str) -> str:
    return normalized(name).rstrip("/").rsplit("/", 1)[-1]


def _why_not(name: str, *, has_prefix: bool) -> str:
    if "/" not in name:
        if has_prefix:
            return "the catalog has no model of that name"
        return f"it starts with neither `{PREFIX}` nor an organisation nor a path"
    return "a Hub repository is written `<org>/<repo>`"


def _local_model(text: str, *, read_files: bool) -> ModelId:
    expanded = os.path.expanduser(text)  # noqa: PTH111
    # An absolute path needs no look at the working directory, which would block.
    is_whole = os.path.isabs(expanded)  # noqa: PTH117
    path = Path(os.path.normpath(expanded) if is_whole else os.path.abspath(expanded))  # noqa: PTH100
    if read_files:
        _check_directory(text, path)
    return ModelId(
        name=str(path), source=str(path), is_local=True, family=family_facts(path.name).name
    )


def _check_directory(text: str, path: Path) -> None:
    if not path.exists():
        raise UnknownModelError(text, f"there is no directory `{path}`")
    if not path.is_dir():
        raise UnknownModelError(text, f"`{path}` is not a directory")
    _check_config(text, path / "config.json")


def _check_config(text: str, config: Path) -> None:
    try:
        load_object(config)
    except UnservableModelError as error:
        missing = f"`{config.parent}` holds no `config.json`"
        raise UnknownModelError(text, missing if error.is_missing else error.message) from error


def _catalog_model(entry: CatalogEntry) -> ModelId:
    return ModelId(
        name=entry.name,
        source=entry.repository,
        is_local=False,
        family=family_facts(entry.name).name,
        context_window=entry.context_window,
        size_mb=entry.size_mb,
        ram_mb=entry.ram_mb,
        capabilities=entry.capabilities,
    )


def _hub_model(repository: str) -> ModelId:
    entry = catalog().by_repository(repository)
    return ModelId(
        name=repository,
        source=repository,
        is_local=False,
        family=family_facts(repository).name,
        context_window=entry.context_window if entry else None,
        size_mb=entry.size_mb if entry else None,
        ram_mb=entry.ram_mb if entry else None,
        capabilities=entry.capabilities if entry else (),
    )
