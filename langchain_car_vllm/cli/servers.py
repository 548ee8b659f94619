"""`ps`, `stop` and `logs`: the servers that run, or ran."""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from langchain_car_vllm.cli.options import AsJson
from langchain_car_vllm.cli.output import log_printer, model_id, print_json, print_table, say, size
from langchain_car_vllm.errors import CarVllmError, ConfigurationError, UnknownModelError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.models.identity import identity_of
from langchain_car_vllm.server import lost_servers, running_servers, stop_servers
from langchain_car_vllm.server.client.liveness import is_serving
from langchain_car_vllm.server.client.status_look import StatusLook
from langchain_car_vllm.server.client.stop import idle_seconds
from langchain_car_vllm.server.client_record import keepers
from langchain_car_vllm.server.directory import (
    ServerDirectory,
    access_hint,
    closed_directories,
    server_directories,
)
from langchain_car_vllm.server.state import State, is_used_elsewhere, read_state
from langchain_car_vllm.support.file_presence import is_present

_FOLLOW = 0.1
_STATUS_SECONDS = 2.0


def ps(*, as_json: AsJson = False) -> None:
    """List the running servers."""
    running, closed = running_servers(), closed_servers()
    if as_json:
        print_json([_server_to_json(directory, state) for directory, state in running])
    elif running:
        header = ("MODEL", "KIND", "STAGE", "ENGINE", "PORT", "PID", "MEMORY", "UP", "UNTIL")
        rows = [_row(directory, state) for directory, state in running]
        print_table(header, rows, dispensable=("PID", "ENGINE", "UP", "PORT"))
    elif closed is None:
        say("no server is running")
    if closed is not None:
        raise closed


def stop(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Model ids, as `ps` shows them or your code names them"
        ),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Stop all servers")] = False,
) -> None:
    """Stop servers.

    Returns when they are gone; requests under way end with an error.
    """
    if everything == bool(models):
        raise typer.BadParameter("name a MODEL, or --all")
    running = [*running_servers(), *lost_servers()]
    chosen = running if everything else []
    closed = closed_servers()
    if everything and not running and closed is None:
        say("no server is running")
    missing = []
    for model in models or ():
        found = _of_model(model, running)
        chosen += [entry for entry in found if entry not in chosen]
        if not found:
            missing.append(model)
    _stop_all(chosen)
    if closed and (everything or missing):
        raise closed
    for model in missing:
        say(f"error: `{model}` is not running")
    if missing:
        say(f"\nhint: {_what_runs()}")
        raise typer.Exit(1)


def closed_servers() -> ConfigurationError | None:
    """Return an error that names the keys of which this user can tell nothing, None for none."""
    closed = [directory.path for directory in closed_directories()]
    if not closed:
        return None
    more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
    return ConfigurationError(
        f"a server of `{closed[0]}`{more} can be neither seen nor stopped: you may not read its "
        "directory",
        hint=access_hint(closed[0]),
    )


def _what_runs() -> str:
    """Return what a person could have meant."""
    names = sorted({model_id(state.served_name) for _, state in running_servers()})
    if not names:
        return "no server is running"
    told = ", ".join(f"`{name}`" for name in names)
    return f"{told} {'is' if len(names) == 1 else 'are'} running; --all stops every server"


def _stop_all(chosen: list[tuple[ServerDirectory, State]]) -> None:
    states, failures = dict(chosen), []
    for directory, outcome in stop_servers(list(states)):
        state = states[directory]
        if isinstance(outcome, CarVllmError):
            failures.append(outcome)
        elif outcome:
            say(f"stopped `{model_id(state.served_name)}`")
        elif is_used_elsewhere(state, directory.path):
            say(f"`{model_id(state.served_name)}` was not stopped: machine `{state.host}` uses it")
    for failure in failures[1:]:
        say(f"error: {failure}")
    if failures:
        raise failures[0]


def logs(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model id; optional if only one server is running"),
    ] = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the log until Ctrl-C")
    ] = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", min=0, max=1_000_000, help="Only this many lines from the end"
        ),
    ] = None,
) -> None:
    """Print the log of a server.

    That of the running server, or else of the last one.
    """
    model = _only_model() if model is None else model
    log = _log_of(model)
    if log is None and (closed := closed_servers()):
        raise closed
    if log is None:
        raise ConfigurationError(
            f"`{model}` has no log on this machine",
            hint="logs are kept for models that were served here; `car-vllm ps` shows the "
            "servers that are running",
        )
    print_part = log_printer()
    with log.open("rb") as file:
        if lines is None:
            while chunk := file.read(1 << 16):
                print_part(chunk)
        else:
            print_part(b"".join(deque(file, maxlen=lines)))
        position, number = file.tell(), os.fstat(file.fileno()).st_ino
    if follow:
        _follow(log, position, number, print_part)


def _only_model() -> str:
    """Return the one model that runs, else the one that was started last.

    Raises:
        BadParameter: Several run, or none has a log.
    """
    running = sorted({model_id(state.served_name) for _, state in running_servers()})
    if len(running) > 1:
        raise typer.BadParameter(f"name one of {', '.join(running)}", param_hint="MODEL")
    if running:
        return running[0]
    logged = [directory for directory in server_directories() if is_present(directory.log)]
    logged.sort(key=lambda directory: directory.log.stat().st_mtime)
    state = read_state(logged[-1].state) if logged else None
    if state is None and (closed := closed_servers()):
        raise closed
    if state is None:
        raise typer.BadParameter("no server is running, and there are no logs", param_hint="MODEL")
    return model_id(state.served_name)


def _follow(log: Path, position: int, number: int, print_part: Callable[[bytes], None]) -> None:
    """Print what is added; a new start's log is read from its beginning."""
    while True:
        with suppress(FileNotFoundError), log.open("rb") as file:  # none between two starts
            found = os.fstat(file.fileno())
            if found.st_ino != number:
                position, number = 0, found.st_ino
            # A log that grew too long loses its first half.
            file.seek(min(position, found.st_size))
            print_part(file.read())
            position = file.tell()
        time.sleep(_FOLLOW)


def _log_of(model: str) -> Path | None:
    """Return the log of the running server, else of the one that was started last."""
    states = [(d, s) for d in server_directories() if (s := read_state(d.state)) is not None]
    found = [directory for directory, _ in _of_model(model, states) if is_present(directory.log)]
    running = {directory.path for directory, _ in running_servers()}
    found.sort(key=lambda directory: (directory.path in running, directory.log.stat().st_mtime))
    return found[-1].log if found else None


def _of_model(
    model: str, servers: list[tuple[ServerDirectory, State]]
) -> list[tuple[ServerDirectory, State]]:
    """Return the servers of a model; a directory may be gone by now."""
    try:
        wanted = identity_of(parse_model_id(model).source)
    except UnknownModelError:
        wanted = identity_of(os.path.abspath(os.path.expanduser(model)))  # noqa: PTH100, PTH111
    return [
        entry
        for entry in servers
        if entry[1].served_name == model or _identity(entry[1].served_name) == wanted
    ]


def _identity(served_name: str) -> tuple[str, str | None]:
    """Return what a server's model is, whichever name it was started by."""
    try:
        return identity_of(parse_model_id(model_id(served_name), read_files=False).source)
    except UnknownModelError:
        return served_name, None


def _server_to_json(directory: ServerDirectory, state: State) -> dict[str, Any]:
    return {
        "model": model_id(state.served_name),
        "served_model": state.served_name,
        "kind": state.kind,
        "stage": state.phase,
        "done_bytes": state.done,
        "total_bytes": state.total,
        "idle_seconds_left": _finite(idle_seconds(directory, state, time.monotonic())),
        "detail": state.detail,
        "base_url": f"http://127.0.0.1:{state.port}/v1" if state.port else None,
        "pid": state.server.pid if state.server else None,
        "supervisor_pid": state.supervisor.pid,
        **state.serving.to_dict(),
        **_drafts_to_json(directory, state),
        "memory_bytes": state.reservation,
        "up_seconds": _age(state),
        "log": str(directory.log),
    }


def _row(directory: ServerDirectory, state: State) -> tuple[str, ...]:
    return (
        model_id(state.served_name),
        state.kind or "-",
        _stage(state),
        _engine(directory, state),
        str(state.port or "-"),
        str(state.server.pid if state.server else "-"),
        size(state.reservation) if state.reservation else "-",
        _clock(_age(state)),
        _until(directory, state),
    )


def _drafts_to_json(directory: ServerDirectory, state: State) -> dict[str, int | None]:
    drafted, accepted = _drafts(directory, state) or (None, None)
    return {"drafted_tokens": drafted, "accepted_tokens": accepted}


def _engine(directory: ServerDirectory, state: State) -> str:
    """Return the engine, with how much of what is drafted is accepted."""
    engine = state.serving.engine or "-"
    if state.serving.draft is None:
        return engine
    drafted, accepted = _drafts(directory, state) or (0, 0)
    share = f"{accepted / drafted:.0%} accepted" if drafted else "none accepted yet"
    return f"{engine}, drafts: {share}"


def _drafts(directory: ServerDirectory, state: State) -> tuple[int, int] | None:
    """Ask a server that drafts tokens how many it drafted, and how many were accepted."""
    if state.serving.draft is None or state.phase != "ready":
        return None
    is_ours = partial(is_serving, directory, state.generation)
    look = StatusLook(state.endpoint(directory.log, is_ours))
    look.wait(_STATUS_SECONDS)
    return look.drafts


def _finite(seconds: float | None) -> float | None:
    """Return -1 for infinity, as `keep_alive` has it: JSON knows no infinity."""
    return -1.0 if seconds is not None and math.isinf(seconds) else seconds


def _stage(state: State) -> str:
    """Return the stage, with how much of a download is done."""
    if state.phase != "download" or state.done is None:
        return state.phase
    return f"download {size(state.done)}" + (f"/{size(state.total)}" if state.total else "")


def _until(directory: ServerDirectory, state: State) -> str:
    """Return when the server stops if nobody uses it."""
    if state.phase != "ready":
        return "-"
    left = idle_seconds(directory, state, time.monotonic())
    if left is None:
        return "in use"
    if math.isinf(left):
        return "kept" if keepers(directory.clients) else "forever"
    return f"in {_clock(int(left))}"


def _age(state: State) -> int | None:
    """Return the seconds since the server process was started."""
    process = state.server.find() if state.server else None
    try:
        # The clock may have been set back since.
        return max(0, int(time.time() - process.create_time())) if process else None
    except psutil.Error:
        return None


def _clock(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
