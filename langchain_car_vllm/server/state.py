"""What a supervisor tells the world, in `state.json`."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from langchain_car_vllm import errors
from langchain_car_vllm.endpoint import Endpoint, Serving
from langchain_car_vllm.server.disk import is_on_local_disk
from langchain_car_vllm.server.process import (
    Identity,
    boot_id,
    is_this_machine,
    namespace,
)
from langchain_car_vllm.server.spec import PROTOCOL

Phase = Literal["queued", "install", "download", "load", "ready", "stopping", "stopped"]
Reason = Literal["user", "idle", "evicted", "crash", "failed", "lost"]
# What the file calls them: supervisors of every version read it.
_STORED_FIELDS = {"served_name": "name"}
_STORED_STOPPING = "draining"
STARTING: tuple[Phase, ...] = ("queued", "install", "download", "load")


@dataclass(frozen=True, slots=True)
class State:
    """One server key as its supervisor last saw it.

    Attributes:
        generation: Counts the starts under this key.
        phase: Where the server is in its life.
        host: Name of the machine, for people.
        machine: What tells it from every other.
        boot_id: Which boot of that machine; times and processes of another boot mean nothing.
        network: Which network namespace the port belongs to, None where there are none.
        processes: Which process namespace the pids belong to, None where there are none.
        served_name: The served model name.
        source: What is served.
        supervisor: The process that wrote this.
        server: The server process, None before it was spawned and after it is gone.
        port: The port that is held for the server, None before.
        api_key: The server's bearer key.
        binary: The `vllm-mlx` that runs.
        serving: What it serves and how, as far as that is known by now.
        ready_at: Monotonic seconds, None before.
        detail: One line about the phase.
        done: Bytes so far, in `download`.
        total: Bytes in all, in `download`.
        reservation: Bytes of memory set aside.
        blocked_by: Keys whose reservations are waited for, with their bytes, in `queued`.
        shortfall: Bytes that are missing, in `queued`.
        crashes: Monotonic seconds of the crashes that still count.
        reason: Why it stopped.
        previous: Why the generation before this one stopped.
        error: What went wrong, as `encode_error` gives it.
    """

    generation: int
    phase: Phase
    host: str
    machine: str
    boot_id: str
    served_name: str
    source: str
    supervisor: Identity
    network: str | None = None
    processes: str | None = None
    server: Identity | None = None
    port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    binary: str | None = None
    serving: Serving = field(default_factory=Serving)
    ready_at: float | None = None
    detail: str = ""
    done: int | None = None
    total: int | None = None
    reservation: int = 0
    blocked_by: dict[str, int] = field(default_factory=dict)
    shortfall: int = 0
    crashes: tuple[float, ...] = ()
    reason: Reason | None = None
    previous: Reason | None = None
    error: dict[str, Any] | None = None
    protocol: int = PROTOCOL

    def endpoint(self, log: Path, is_ours: Callable[[], bool] | None = None) -> Endpoint:
        """Return the endpoint of a ready server.

        Args:
            log: The server's.
            is_ours: Tells whether this very server still lives.
        """
        return Endpoint(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            api_key=self.api_key,
            served_model=self.served_name,
            generation=self.generation,
            log_path=log,
            managed=True,
            is_ours=is_ours,
            **self.serving.facts(),
        )


def read_state(path: Path) -> State | None:
    """Return the state, or None where there is none that this version understands."""
    try:
        values = json.loads(path.read_bytes())
        if values["protocol"] != PROTOCOL:
            return None
        return _decode_state(values)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def write_state(path: Path, state: State) -> None:
    """Replace the state in one step; readers see the old one or the new one."""
    scratch = path.with_suffix(".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(_encode_state(state), file)
        file.flush()
        # The file system's own stamps are coarse and its numbers come again: readers could not tell
        # two states that follow each other closely.
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now))
    scratch.replace(path)


def _decode_state(values: dict[str, Any]) -> State:
    stored = {f.name: _STORED_FIELDS.get(f.name, f.name) for f in dataclasses.fields(State)}
    known = {field: values[name] for field, name in stored.items() if name in values}
    known["phase"] = "stopping" if values["phase"] == _STORED_STOPPING else values["phase"]
    for name in ("supervisor", "server"):
        if (identity := known.get(name)) is not None:
            known[name] = Identity(identity["pid"], identity["marker"])
    known["crashes"] = tuple(known["crashes"])
    # Its facts lie beside the others in the file, as they always did.
    known["serving"] = Serving.from_dict(values)
    return State(**known)


def _encode_state(state: State) -> dict[str, Any]:
    values = dataclasses.asdict(state)
    for name in ("supervisor", "server"):
        if (identity := values[name]) is not None:
            values[name] = {"pid": identity["pid"], "marker": identity["tag"]}
    if state.phase == "stopping":
        values["phase"] = _STORED_STOPPING
    del values["serving"]
    values |= state.serving.to_dict()
    return {_STORED_FIELDS.get(name, name): value for name, value in values.items()}


def is_of_this_machine(state: State) -> bool:
    """Tell whether a state was written here, in this boot or an earlier one."""
    is_known_boot = bool(state.boot_id) and state.boot_id == boot_id()
    return is_known_boot or is_this_machine(state.machine, state.host)


def is_used_elsewhere(state: State, folder: Path) -> bool:
    """Tell whether another machine may be using a folder that it left such a state in.

    On a local disk it cannot: the state came with a copy of the disk, as a new Mac gets it.
    """
    return not is_of_this_machine(state) and not is_on_local_disk(folder)


def is_of_this_container(state: State) -> bool:
    """Tell whether a state's port and pids mean here what they mean to its supervisor.

    Namespaces of another boot, or of a version that did not note them, tell nothing.
    """
    if state.boot_id != boot_id():
        return True
    seen = ((state.network, "net"), (state.processes, "pid"))
    return all(noted is None or noted == namespace(kind) for noted, kind in seen)


def ask_to_make_room(path: Path, seen: State) -> Phase | None:
    """Ask the supervisor that wrote a state to stop its server if nobody is served.

    Returns:
        The phase it is in, None where it is no longer the one that was seen.
    """
    state = read_state(path)
    if state is None or state.generation != seen.generation:
        return None
    process = state.supervisor.find() if state.phase == "ready" else None
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR1)
    return state.phase


def encode_error(error: errors.CarVllmError) -> dict[str, Any]:
    """Return an error as JSON values."""
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in error.__dict__.items()}
    return {"type": type(error).__name__, "fields": fields}


def decode_error(encoded: dict[str, Any]) -> errors.CarVllmError:
    """Rebuild what `encode_error` gave; an unknown type becomes a `ServerStartError`."""
    cls = getattr(errors, encoded["type"], None)
    if not (isinstance(cls, type) and issubclass(cls, errors.CarVllmError)):
        cls = errors.ServerStartError
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in encoded["fields"].items()
    }
    for name in ("path", "log_path"):
        if isinstance(value := fields.get(name), str):
            fields[name] = Path(value)
    error: errors.CarVllmError = cls.__new__(cls)
    error.__dict__.update(fields)
    return error
