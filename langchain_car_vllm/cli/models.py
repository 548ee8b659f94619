"""`list`, `show` and `plan`: the models, before anything of them runs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from langchain_car_vllm import paths
from langchain_car_vllm.cli.output import (
    AsJson,
    ModelArgument,
    model_id,
    print_facts,
    print_json,
    print_table,
    say,
    size,
)
from langchain_car_vllm.cli.planning import Plan, plan_for
from langchain_car_vllm.errors import (
    ConfigurationError,
    ModelDownloadError,
    RuntimeProvisioningError,
)
from langchain_car_vllm.models import ModelId, find_snapshot, parse_model_id, read_model_facts
from langchain_car_vllm.models.catalog import PREFIX, catalog
from langchain_car_vllm.models.download import check_may_download
from langchain_car_vllm.models.hub import HubFile, ask_hub
from langchain_car_vllm.models.ids import is_repository
from langchain_car_vllm.models.remote_code import is_trusted
from langchain_car_vllm.models.snapshot import hub_cache, repository_folder
from langchain_car_vllm.runtime import installed_version, resolve_existing
from langchain_car_vllm.runtime.host import check_host, current_host
from langchain_car_vllm.server.spec import ServerSpec

_LM_STUDIO = (".lmstudio/models", ".cache/lm-studio/models")


class _Shelved(NamedTuple):
    model: str
    repository: str
    directory: Path | None
    size: int
    context_window: int | None


def list_models(
    *,
    in_catalog: Annotated[
        bool, typer.Option("--catalog", help="The catalog's models, here or not")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models on this machine.

    Those in the Hub cache and in LM Studio's folder.
    """
    names = [e.repository for e in catalog().entries] if in_catalog else sorted(_local_names())
    found = [entry for name in names if (entry := _shelved(name, absent=in_catalog))]
    if as_json:
        print_json([_listed(entry) for entry in found])
    elif found:
        header = ("MODEL", "SIZE", "CONTEXT", "DIRECTORY")
        print_table(header, [_row(entry) for entry in found])
    else:
        say("no model is on this machine; `car-vllm list --catalog` shows which there are")


def show(
    model: ModelArgument,
    *,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a model."""
    found = parse_model_id(model)
    plan_ = plan_for(found, ServerSpec(found.source, found.name, revision=revision))
    if as_json:
        print_json(_known(plan_))
        return
    _tell_if_estimated(plan_)
    print_facts((name, _worded(value, name)) for name, value in _known(plan_).items())


def plan(
    model: ModelArgument,
    *,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit")] = None,
    engine: Annotated[
        Literal["auto", "simple", "batched"], typer.Option(help="As in the code")
    ] = "auto",
    server_arg: Annotated[
        list[str] | None, typer.Option(help="As in `server_args`; once for each word")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether and how a model would start.

    Nothing is downloaded or started; the Hub is asked about a model that is not here.
    The exit code is 1 where it would not.
    """
    found = parse_model_id(model)
    spec = ServerSpec(
        found.source,
        found.name,
        revision=revision,
        engine=engine,
        server_args=tuple(server_arg or ()),
    )
    hub, files = _ask_hub(found, spec)
    plan_ = plan_for(found, spec, files)
    host = _host_problem()
    verdicts = {
        "host": host is None,
        "hub": hub is None,
        "disk": plan_.fits_disk,
        "memory": plan_.fits_memory,
    }
    if as_json:
        print_json({**_planned(plan_, spec), "fits": verdicts})
    else:
        _tell_if_estimated(plan_)
        print_facts(
            [
                ("host", host or "can run vllm-mlx"),
                ("runtime", _runtime()),
                ("hub", hub or ("need not be asked" if plan_.directory else "has the model")),
                ("disk", _disk(plan_)),
                ("memory", _memory(plan_)),
                ("engine", plan_.launch.serving.engine or "unknown"),
                ("tool calls", plan_.facts.tool_call_parser or "no parser"),
                ("thinking", plan_.facts.reasoning_parser or "no parser"),
                ("command", plan_.command(spec)),
            ]
        )
    if False in verdicts.values():
        raise typer.Exit(1)


def _local_names() -> set[str]:
    return {*_hub_names(hub_cache()), *_lm_studio_names(paths.home())}


def _hub_names(cache: Path | None) -> Iterator[str]:
    for folder in cache.glob("models--*--*") if cache else ():
        yield folder.name.removeprefix("models--").replace("--", "/", 1)


def _lm_studio_names(home: Path | None) -> Iterator[str]:
    for root in _LM_STUDIO if home else ():
        for folder in (home / root).glob("*/*") if home else ():
            yield f"{folder.parent.name}/{folder.name}"


def _shelved(repository: str, *, absent: bool) -> _Shelved | None:
    """Return a model, None for what is no model that can be served."""
    if not is_repository(repository):
        return None
    entry = catalog().by_repository(repository)
    name = PREFIX + entry.name if entry else repository
    directory = find_snapshot(repository)
    if directory is not None:
        try:
            facts = read_model_facts(directory, repository)
        except ConfigurationError:
            return None
        return _Shelved(name, repository, directory, facts.weights_bytes, facts.context_window)
    window = entry.context_window if entry else None
    if absent and entry:
        return _Shelved(name, repository, None, entry.size_mb * 1_000_000, window)
    begun = _begun_bytes(repository)
    return _Shelved(name, repository, None, begun, window) if begun else None


def _begun_bytes(repository: str) -> int:
    """Return what an interrupted download left, 0 where none was interrupted."""
    folder = repository_folder(repository)
    blobs = list((folder / "blobs").glob("*")) if folder else []
    if not any(blob.suffix == ".incomplete" for blob in blobs):
        return 0
    return sum(blob.stat().st_size for blob in blobs)


def _row(entry: _Shelved) -> tuple[str, ...]:
    unfinished = "incomplete" if _begun_bytes(entry.repository) else "-"
    directory = str(entry.directory) if entry.directory else unfinished
    return entry.model, size(entry.size), str(entry.context_window or "-"), directory


def _listed(entry: _Shelved) -> dict[str, Any]:
    return {
        "model": entry.model,
        "repository": entry.repository,
        "directory": str(entry.directory) if entry.directory else None,
        "complete": entry.directory is not None,
        "bytes": entry.size,
        "context_window": entry.context_window,
    }


def _tell_if_estimated(plan_: Plan) -> None:
    if plan_.directory is None:
        say("not on this machine: what follows is told by its name and the catalog")


def _known(plan_: Plan) -> dict[str, Any]:
    facts = plan_.facts
    return {
        "model": model_id(plan_.model.name),
        "source": plan_.model.source,
        "directory": str(plan_.directory) if plan_.directory else None,
        "family": facts.family,
        **plan_.launch.serving.to_dict(),
        "takes_media": plan_.launch.serving.multimodal,
        "sampling": facts.sampling,
        "weights_bytes": plan_.weights,
        "memory_bytes": plan_.needed,
        "memory_budget_bytes": plan_.budget,
        "memory_taken_bytes": plan_.taken,
        "fits_memory": plan_.fits_memory,
    }


def _planned(plan_: Plan, spec: ServerSpec) -> dict[str, Any]:
    used = resolve_existing()
    return {
        **_known(plan_),
        "runtime": str(used) if used else None,
        "runtime_version": installed_version(used) if used else None,
        "disk_free_bytes": plan_.disk,
        "command": plan_.command(spec),
    }


def _worded(value: Any, name: str) -> str:
    if name.endswith("_bytes"):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return _pairs(value.items()) or "the server's own"
    return "-" if value is None else str(value)


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in items)


def _ask_hub(model: ModelId, spec: ServerSpec) -> tuple[str | None, list[HubFile]]:
    """Return why the Hub does not give a model that is not here, and the files that it lists."""
    trust = is_trusted(spec.server_args)
    if find_snapshot(model.source, spec.revision, trust=trust) is not None:
        return None, []
    try:
        check_may_download(model.source)
        return None, ask_hub(model.source, spec.revision, trust=trust)
    except ModelDownloadError as error:
        return error.message, []


def _host_problem() -> str | None:
    try:
        check_host(current_host())
    except RuntimeProvisioningError as error:
        return error.message
    return None


def _runtime() -> str:
    used = resolve_existing()
    if used is None:
        return "not installed, the first call installs it"
    return f"vllm-mlx {installed_version(used) or 'of unknown version'} in `{used}`"


def _disk(plan_: Plan) -> str:
    if plan_.directory is not None:
        return f"on this machine, in `{plan_.directory}`"
    wanted = f"to be downloaded, {size(plan_.weights)}"
    return wanted if plan_.disk is None else f"{wanted}; {size(plan_.disk)} are free"


def _memory(plan_: Plan) -> str:
    verdict = {True: "fits", False: "does not fit", None: "unknown until it is downloaded"}
    words = f"{verdict[plan_.fits_memory]}: {size(plan_.needed)} of {size(plan_.budget)}"
    return f"{words}, of which other models have {size(plan_.taken)}" if plan_.taken else words
