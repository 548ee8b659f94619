"""What a supervisor tells the world, in `state.json`."""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from langchain_car_vllm import errors
from langchain_car_vllm.endpoint import Endpoint, Serving
from langchain_car_vllm.runtime.mounts import is_on_local_disk
from langchain_car_vllm.server.process import Identity, boot_id, is_this_machine, namespace
from langchain_car_vllm.server.spec import PROTOCOL
from langchain_car_vllm.support.replaced_files import replaced_file

Phase = Literal["queued", "install", "download", "load", "ready", "stopping", "stopped"]
Reason = Literal["user", "idle", "evicted", "crash", "failed", "lost"]
# What the file calls them: supervisors of every version read it.
_STORED_FIELDS = {"served_name": "name"}
_STORED_STOPPING = "draining"
_MOST_BYTES = 2**50
_UNREADABLE = (
    FileNotFoundError,
    NotADirectoryError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
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
        package: The version of this package that the supervisor runs, None before it was noted.
        network: Which network namespace the port belongs to, None where there are none.
        processes: Which process namespace the pids belong to, None where there are none.
        served_name: The served model name.
        source: What is served.
        kind: What it serves, such as `chat`, None where it was not noted.
        keep_alive: Seconds that it stays without a request where no client wished otherwise.
        supervisor: The process that wrote this.
        server: The server process, None before it was spawned and after it is gone.
        port: The port that is held for the server, None before.
        api_key: The server's bearer key.
        binary: The `vllm-mlx` that runs, for people.
        files: What tells the files that were loaded from later ones, None for a repository.
        serving: What it serves and how, as far as that is known by now.
        ready_at: Monotonic seconds, None before.
        detail: One line about the phase.
        done: Bytes so far, in `download`.
        total: Bytes in all, in `download`.
        reservation: Bytes of memory set aside.
        least: Bytes of them that a ready server needs to go on, 0 where it cannot do with less.
        wired: Bytes of its model that are wired in memory.
        needed: Bytes of memory that are waited for, in `queued`.
        queued_at: Monotonic seconds since which memory is waited for, None where it is not.
        victims: Keys of the servers that are to make room for this one.
        shrinks: Keys of the servers that are to go on with less, and the bytes that they keep.
        is_wanted: Whether another start is to get this one's memory, so that new requests wait.
        blocked_by: Keys whose reservations are waited for, with their bytes, in `queued`.
        shortfall: Bytes that are missing, in `queued`.
        crashes: Monotonic seconds of the crashes that still count.
        warning: What the user should know although the server serves, None where nothing.
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
    kind: str | None = None
    keep_alive: float = 600.0
    package: str | None = None
    network: str | None = None
    processes: str | None = None
    server: Identity | None = None
    port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    binary: str | None = None
    files: str | None = None
    serving: Serving = field(default_factory=Serving)
    ready_at: float | None = None
    detail: str = ""
    done: int | None = None
    total: int | None = None
    reservation: int = 0
    least: int = 0
    wired: int = 0
    needed: int = 0
    queued_at: float | None = None
    victims: tuple[str, ...] = ()
    shrinks: dict[str, int] = field(default_factory=dict)
    is_wanted: bool = False
    blocked_by: dict[str, int] = field(default_factory=dict)
    shortfall: int = 0
    crashes: tuple[float, ...] = ()
    warning: str | None = None
    reason: Reason | None = None
    previous: Reason | None = None
    error: dict[str, Any] | None = None
    protocol: int = PROTOCOL

    def endpoint(self, log: Path, is_ours: Callable[..., bool] | None = None) -> Endpoint:
        """Return the endpoint of a ready server."""
        return Endpoint(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            api_key=self.api_key,
            served_model=self.served_name,
            generation=self.generation,
            log_path=log,
            managed=True,
            files=self.files,
            is_ours=is_ours,
            **self.serving.facts(),
        )


def read_state(path: Path) -> State | None:
    """Return the state, or None where there is none that this version understands."""
    try:
        values = json.loads(_read_own(path))
        if values["protocol"] != PROTOCOL:
            return None
        return _decode_state(values)
    except _UNREADABLE:
        return None


def _read_own(path: Path) -> bytes:
    """Return what a file holds that this user or root wrote.

    Raises:
        ValueError: It is somebody else's.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        owner, reader = os.fstat(file.fileno()).st_uid, os.geteuid()
        if owner not in (0, reader) and reader != 0:
            raise ValueError(owner)
        return file.read()


_read: dict[Path, tuple[tuple[int, int], State]] = {}


def known_state(path: Path) -> State | None:
    """Return what `read_state` does; the file is read again only where it was replaced.

    Raises:
        OSError: The system refuses a look.
    """
    stamp = state_stamp(path)
    if stamp is None:
        return None
    known = _read.get(path)
    if known is None or known[0] != stamp:
        state = read_state(path)
        if state is None:
            return None
        _read[path] = known = stamp, state
    return known[1]


def read_header(path: Path) -> State | None:
    """Return what the supervisor of any version says, all other fields at their defaults.

    These fields keep their names and meanings forever, so that versions that run side by side see,
    stop and count each other's servers: `protocol`, `package`, `generation`, `phase`, `name`,
    `host`, `machine`, `boot_id`, `network`, `processes`, `supervisor`, `server`, `reservation`.
    """
    try:
        values = json.loads(_read_own(path))
        return State(
            protocol=int(values["protocol"]),
            package=_text(values.get("package")),
            generation=int(values["generation"]),
            phase=_decode_phase(str(values["phase"])),
            served_name=str(values["name"]),
            source="",
            host=str(values["host"]),
            machine=str(values["machine"]),
            boot_id=str(values["boot_id"]),
            network=_text(values.get("network")),
            processes=_text(values.get("processes")),
            supervisor=_decode_identity(values["supervisor"]),
            server=_decode_identity(values["server"]) if values.get("server") else None,
            reservation=_bytes(values.get("reservation")),
        )
    except _UNREADABLE:
        return None


def read_any_state(path: Path) -> State | None:
    """Return the state, of another version its header alone, None where nothing can be read."""
    return read_state(path) or read_header(path)


def write_state(path: Path, state: State) -> tuple[int, int]:
    """Replace the state in one step; readers see the old one or the new one.

    Returns:
        Its `state_stamp`.
    """
    return _write(path, _encode_state(state))


def state_stamp(path: Path) -> tuple[int, int] | None:
    """Return what tells a state file from those before and after it, None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def mark_stopped(path: Path, reason: Reason) -> None:
    """Say in the place of a lost supervisor, of whatever version, that its server is stopped."""
    values = json.loads(_read_own(path))
    values.update(phase="stopped", reason=reason, server=None, port=None, api_key=None)
    _write(path, {**values, "reservation": 0})


def _write(path: Path, values: dict[str, Any]) -> tuple[int, int]:
    with replaced_file(path) as file:
        file.write(json.dumps(values).encode())
        file.flush()
        # The file system's own stamps are coarse and its numbers come again: readers could not tell
        # two states that follow each other closely.
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now))
        found = os.fstat(file.fileno())
    return found.st_ino, found.st_mtime_ns


def _decode_state(values: dict[str, Any]) -> State:
    stored = {f.name: _STORED_FIELDS.get(f.name, f.name) for f in dataclasses.fields(State)}
    known = {field: values[name] for field, name in stored.items() if name in values}
    known["phase"] = _decode_phase(values["phase"])
    for name in ("supervisor", "server"):
        if (identity := known.get(name)) is not None:
            known[name] = _decode_identity(identity)
    known["crashes"] = tuple(known["crashes"])
    known["victims"] = tuple(map(str, known.get("victims", ())))
    for name in ("reservation", "least", "wired", "needed"):
        known[name] = _bytes(known.get(name))
    known["shrinks"] = {str(key): _bytes(kept) for key, kept in values.get("shrinks", {}).items()}
    # Its facts lie beside the others in the file, as they always did.
    known["serving"] = Serving.from_dict(values)
    state = State(**known)
    for entry in dataclasses.fields(State):
        if not _is_of(getattr(state, entry.name), entry.type):
            raise TypeError(entry.name)
    return state


def _is_of(value: object, kind: Any) -> bool:
    """Tell whether a value is of the kind that a field is declared with."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in get_args(kind))
    if origin is Literal:
        return isinstance(value, str)
    if origin is float:
        return isinstance(value, float) or (type(value) is int and abs(value) < _MOST_BYTES)
    return isinstance(value, origin)


def _decode_phase(stored: str) -> Phase:
    return "stopping" if stored == _STORED_STOPPING else stored  # type: ignore[return-value]


def _decode_identity(stored: dict[str, Any]) -> Identity:
    pid = int(stored["pid"])
    if pid <= 0:  # to the system, a group
        raise ValueError(pid)
    return Identity(pid, str(stored["marker"]))


def _bytes(value: object) -> int:
    """Return a size of memory that no sum can be spoilt with."""
    return min(max(0, value), _MOST_BYTES) if isinstance(value, int) else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


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


def encode_error(error: errors.CarVllmError) -> dict[str, Any]:
    """Return an error as JSON values."""
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in error.__dict__.items()}
    return {"type": type(error).__name__, "fields": fields}


def decode_error(encoded: object) -> errors.CarVllmError:
    """Rebuild what `encode_error` gave; an unknown type becomes a `ServerStartError`.

    What another release's error does not have is as if nothing were known of it.
    """
    told = encoded if isinstance(encoded, dict) else {}
    cls = getattr(errors, str(told.get("type")), None)
    if not (isinstance(cls, type) and issubclass(cls, errors.CarVllmError)):
        cls = errors.ServerStartError
    given = told.get("fields")
    fields: dict[str, Any] = {
        k: tuple(map(str, v)) if isinstance(v, list) else v
        for k, v in (given if isinstance(given, dict) else {}).items()
    }
    for name in ("path", "log_path"):
        if name in fields:
            fields[name] = Path(fields[name]) if isinstance(fields[name], str) else None
    if not isinstance(fields.get("log_tail", ()), tuple):
        del fields["log_tail"]
    message = str(fields.pop("message", "") or "the supervisor failed without saying why")
    kind = errors.ServerError if issubclass(cls, errors.ServerError) else errors.CarVllmError
    error: errors.CarVllmError = cls.__new__(cls)
    error.__dict__.update({**kind(message).__dict__, **fields})
    return error
