"""`uninstall`: everything that the package keeps on this machine, and nothing else."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from langchain_car_vllm import environment, paths
from langchain_car_vllm.cli.gateway_process import end_gateways
from langchain_car_vllm.cli.options import Yes
from langchain_car_vllm.cli.output import print_json, print_table, say, size
from langchain_car_vllm.cli.removal import (
    confirms,
    disk_bytes,
    is_there,
    remove_path,
    repository_files,
)
from langchain_car_vllm.cli.servers import closed_servers
from langchain_car_vllm.cli.service import remove_service, service_file
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.runtime.environment_folder import removable_parts
from langchain_car_vllm.runtime.provision import holds_runtime_of_ours, runtime_removal
from langchain_car_vllm.server import stop_servers
from langchain_car_vllm.server.directory import explain_os_errors, server_directories
from langchain_car_vllm.server.state import read_state
from langchain_car_vllm.support.file_presence import entries_of
from langchain_car_vllm.support.replaced_files import draft_name

# What lies beside the run state of the servers in `run`, other packages' things apart.
_KEPT_BESIDE = (
    "pull",
    "kernels",
    "gateways",
    "gateway.key",
    "gateway.log",
    "metal.json",
    "tested-installs.json",
)
_Kind = Literal["service", "run state", "runtime", "model"]


class _Kept(NamedTuple):
    kind: _Kind
    path: Path
    bytes: int


def uninstall(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what is stored where, and how large it is")
    ] = False,
    models: Annotated[
        bool, typer.Option("--models", help="Also remove the models that were downloaded or served")
    ] = False,
    yes: Yes = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print the list as JSON")
    ] = False,
) -> None:
    """Remove what the package keeps on this machine.

    Servers, service, runtime, run state and prefix caches.

    Models only with --models: other programs that use the Hub's cache lose them too. Never a
    directory of yours, and never an install of `vllm-mlx` that something else made.
    """
    if as_json and not dry_run:
        raise typer.BadParameter("it only works with --dry-run", param_hint="--json")
    if closed := closed_servers():
        raise closed
    names = sorted(_model_names())
    with explain_os_errors(paths.car_home()):
        found = [*_find_kept(), *(_models(names) if models else ())]
    if as_json:
        print_json([{**entry._asdict(), "path": str(entry.path)} for entry in found])
        return
    if not found:
        say("nothing is stored on this machine")
        return
    rows = [(entry.kind, size(entry.bytes), str(entry.path)) for entry in found]
    print_table(("WHAT", "SIZE", "WHERE"), rows)
    _tell_what_stays(names, models=models)
    total = size(sum(entry.bytes for entry in found))
    if dry_run:
        say(f"`car-vllm uninstall` would free {total}")
        return
    if not yes and not confirms(f"Remove all of this and free {total}?"):
        raise typer.Exit(1)
    _remove(found)
    say(f"freed {total}; `pip uninstall langchain-car-vllm` removes the program itself")


def _find_kept() -> Iterator[_Kept]:
    if (file := service_file()) is not None and is_there(file):
        yield _Kept("service", file, disk_bytes(file))
    root = paths.run_root()
    beside = [root.with_name(name) for name in _KEPT_BESIDE]
    drafts = [d for path in beside for d in entries_of(path.parent, draft_name(path.name, "*"))]
    for path in (root, *beside, *drafts):
        if is_there(path):
            yield _Kept("run state", path, disk_bytes(path))
    runtime = paths.managed_root()
    if runtime is not None and holds_runtime_of_ours(runtime):
        yield _Kept("runtime", runtime, sum(map(disk_bytes, removable_parts(runtime))))


def _models(names: list[str]) -> Iterator[_Kept]:
    for name in names:
        for path in repository_files(name):
            yield _Kept("model", path, disk_bytes(path))


def _model_names() -> set[str]:
    """Return the repositories in the Hub's cache that were downloaded or served from here."""
    pulled = paths.run_root().with_name("pull")
    names = {path.name.replace("--", "/", 1) for path in entries_of(pulled, "*--*")}
    states = (read_state(directory.state) for directory in server_directories())
    names |= {state.source for state in states if state is not None}
    return {name for name in names if repository_files(name)}


def _tell_what_stays(names: list[str], *, models: bool) -> None:
    runtime = paths.managed_root()
    if runtime is not None and is_there(runtime) and not holds_runtime_of_ours(runtime):
        say(f"`{runtime}` stays: it was not made by this package")
    if names and not models:
        say(f"models that stay, unless you pass --models: {', '.join(names)}")


def _remove(found: list[_Kept]) -> None:
    """Remove it all, once nothing runs that uses it.

    Raises:
        CarVllmError: A server does not end; or something cannot be removed, and all else is gone.
    """
    # First what would start the servers again.
    if any(entry.kind == "service" for entry in found):
        remove_service()
    end_gateways()
    stopped = [outcome for _, outcome in stop_servers(server_directories())]
    if error := next((outcome for outcome in stopped if isinstance(outcome, CarVllmError)), None):
        raise error
    runtimes = [entry.path for entry in found if entry.kind == "runtime"]
    with ExitStack() as stack:
        for runtime in runtimes:
            stack.enter_context(runtime_removal(runtime))
        failures = [failure for entry in found if (failure := _remove_entry(entry))]
    _remove_empty()
    if failures:
        raise failures[0]


def _remove_entry(entry: _Kept) -> ConfigurationError | None:
    """Remove one thing and return None, or why it stays."""
    try:
        if entry.kind in _REMOVALS:
            _REMOVALS[entry.kind](entry.path)
    except ConfigurationError as error:
        return error
    return None


def _remove_runtime(root: Path) -> None:
    """Remove the environment; what somebody else put into its folder stays."""
    for part in removable_parts(root):
        remove_path(part)
    if is_there(root):
        say(f"`{root}` stays: it holds other files")


_REMOVALS = {"run state": remove_path, "runtime": _remove_runtime, "model": remove_path}


def _remove_empty() -> None:
    """Remove the folders that only held what was removed."""
    run = paths.run_root().parent
    folders = [run] if environment.CAR_HOME.read() else [run, run.parent]
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
