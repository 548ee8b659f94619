"""`list`: the models, before anything of them runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from langchain_car_vllm.cli.options import AsJson
from langchain_car_vllm.cli.output import print_json, print_table, say, size
from langchain_car_vllm.errors import ConfigurationError, UnservableModelError
from langchain_car_vllm.models import find_snapshot
from langchain_car_vllm.models.catalog import PREFIX, catalog
from langchain_car_vllm.models.lm_studio import lm_studio_folders, lost_folders
from langchain_car_vllm.models.model_files import list_folder
from langchain_car_vllm.models.repository_names import is_repository
from langchain_car_vllm.models.snapshot import hub_cache, repository_folder
from langchain_car_vllm.models.text_writer import only_reads
from langchain_car_vllm.paths import lost_disk
from langchain_car_vllm.server.plan import learn_budget, plan_for
from langchain_car_vllm.server.spec import Kind, ServerSpec


class ShelvedModel(NamedTuple):
    """What `list` tells of a model; `problem` says why it cannot be served."""

    model: str
    repository: str
    directory: Path | None = None
    size: int = 0
    context_window: int | None = None
    max_input_tokens: int | None = None
    problem: str | None = None


def list_models(
    *,
    in_catalog: Annotated[
        bool, typer.Option("--catalog", help="List the catalog's models, downloaded or not")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models on this machine.

    Those in the Hub cache and in LM Studio's folder.
    """
    learn_budget()
    names = [e.repository for e in catalog().entries] if in_catalog else sorted(_local_names())
    found = [entry for name in names if (entry := _find_model(name, absent=in_catalog))]
    _tell_unreadable_folders()
    if as_json:
        print_json([_to_json(entry) for entry in found])
    elif found:
        header = ("MODEL", "SIZE", "CONTEXT", "FITS HERE", "DIRECTORY")
        print_table(header, [_row(entry) for entry in found])
    else:
        say(
            "there are no models on this machine; `car-vllm recommend` lists some that fit, "
            "`car-vllm list --catalog` the whole catalog"
        )


def odd_models() -> list[ShelvedModel]:
    """Return what is on this machine and cannot be served."""
    found = [_find_model(name, absent=False) for name in sorted(_local_names())]
    return [entry for entry in found if entry is not None and entry.problem]


def _tell_unreadable_folders() -> None:
    """Say where models may be that nobody can see."""
    cache = hub_cache()
    lost = lost_disk(cache) if cache else None
    for said in (*([lost] if lost else []), *lost_folders()):
        say(f"{said}\n")
    for folder in filter(None, (cache, *lm_studio_folders())):
        if refusal := refusal_of(folder):
            say(f"{refusal}\n")


def refusal_of(folder: Path) -> UnservableModelError | None:
    """Return why nobody can see what is in a folder, None where it can be seen or is not there."""
    try:
        list_folder(folder)
    except UnservableModelError as error:
        return None if error.is_missing else error
    return None


def _local_names() -> set[str]:
    return {*_hub_names(hub_cache()), *_lm_studio_names()}


def _hub_names(cache: Path | None) -> Iterator[str]:
    for name in _entries(cache) if cache else ():
        if name.startswith("models--") and "--" in name.removeprefix("models--"):
            yield name.removeprefix("models--").replace("--", "/", 1)


def _lm_studio_names() -> Iterator[str]:
    for root in lm_studio_folders():
        for organisation in _entries(root):
            for name in _entries(root / organisation):
                yield f"{organisation}/{name}"


def _entries(folder: Path) -> list[str]:
    """Return what is in a folder, nothing where nobody may look."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _find_model(repository: str, *, absent: bool) -> ShelvedModel | None:
    """Return a model, None for what cannot be served."""
    if not is_repository(repository):
        return None
    entry = catalog().by_repository(repository)
    name = PREFIX + entry.name if entry else repository
    try:
        directory = find_snapshot(repository)
        if directory is None and not absent:
            window = entry.context_window if entry else None
            begun = ShelvedModel(name, repository, None, _begun_bytes(repository), window)
            return begun if begun.size else None
        plan_ = plan_for(
            spec_of_any_kind(repository, entry.name if entry else repository, directory)
        )
    except ConfigurationError as error:
        return ShelvedModel(name, repository, problem=error.message)
    fitting = 0 if plan_.fits_memory is False else plan_.launch.serving.max_input_tokens
    window = plan_.facts.context_window
    return ShelvedModel(name, repository, directory, plan_.weights or 0, window, fitting)


def spec_of_any_kind(
    source: str, name: str, directory: Path | None, revision: str | None = None
) -> ServerSpec:
    """Return how a model is served that may embed or rerank only, and is not refused for that."""
    kind: Kind = "embeddings" if only_reads(directory) else "chat"
    return ServerSpec(source, name, revision=revision, kind=kind)


def _begun_bytes(repository: str) -> int:
    """Return what an interrupted download left, 0 where none was interrupted."""
    folder = repository_folder(repository)
    try:
        blobs = list_folder(folder / "blobs") if folder else {}
    except UnservableModelError:
        return 0
    if not any(name.endswith(".incomplete") for name in blobs):
        return 0
    return sum(blob or 0 for blob in blobs.values())


def _row(entry: ShelvedModel) -> tuple[str, ...]:
    unfinished = "incomplete" if _begun_bytes(entry.repository) else "-"
    directory = str(entry.directory) if entry.directory else entry.problem or unfinished
    counts = (entry.context_window, entry.max_input_tokens)
    window, fitting = ("-" if count is None else str(count) for count in counts)
    return entry.model, size(entry.size), window, "no" if fitting == "0" else fitting, directory


def _to_json(entry: ShelvedModel) -> dict[str, Any]:
    return {
        "model": entry.model,
        "repository": entry.repository,
        "directory": str(entry.directory) if entry.directory else None,
        "complete": entry.directory is not None,
        "problem": entry.problem,
        "bytes": entry.size,
        "context_window": entry.context_window,
        "max_input_tokens": entry.max_input_tokens,
    }
