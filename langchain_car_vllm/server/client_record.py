"""Records of the client processes: their keep_alive, touched when a request ends.

The modification time is the monotonic clock's, with the start of the machine in 2001: no change of
the wall clock disturbs the order of uses, and disks such as exFAT keep no time before 1980.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from langchain_car_vllm.server.idle import Use
from langchain_car_vllm.server.locks import is_file_held
from langchain_car_vllm.support.file_presence import entries_of
from langchain_car_vllm.support.replaced_files import replaced_file

_START_NS = 10**18
_REQUEST, _KEPT = ".held-", ".kept-"
"""Marks of the processes with requests under way, and of those that keep a server without any."""


def record_name() -> str:
    """Return the name of this process's record; a sandbox may keep it from knowing its own age."""
    created = 0.0
    with suppress(psutil.Error):
        created = psutil.Process().create_time()
    return f"{os.getpid()}-{created:.2f}"


def write_record(path: Path, keep_alive: float) -> None:
    """Replace this process's record."""
    with replaced_file(path) as file:
        file.write(f"{keep_alive!r}\n".encode("ascii"))
        file.flush()
        _stamp(file.fileno())


def touch_record(path: Path, keep_alive: float) -> None:
    """Tell that a request ended."""
    try:
        _stamp(path)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            write_record(path, keep_alive)


def promise_path(folder: Path) -> Path:
    """Return the file that says that a caller was told that a start goes on without him."""
    return folder / ".goes-on"


def promise(folder: Path, generation: int) -> None:
    """Note that a start goes on without the caller."""
    path = promise_path(folder)
    path.touch(mode=0o600)
    path.write_text(f"{generation}\n", encoding="ascii")


def is_promised(folder: Path, generation: int) -> bool:
    """Tell whether a start goes on without a caller; a promise of an earlier one binds nobody."""
    try:
        return int(promise_path(folder).read_text(encoding="ascii")) >= generation
    except FileNotFoundError:
        return False
    except ValueError:  # an earlier release did not say which start it means
        return True


def has_live_client(folder: Path) -> bool:
    """Tell whether a process that used the server lives and may come back."""
    return any(is_client_alive(path.name) for path in entries_of(folder, "[!.]*"))


def is_client_alive(name: str) -> bool:
    """Tell whether the process of a record lives; one that is not reaped yet does not."""
    pid, _, created = name.partition("-")
    try:
        process = psutil.Process(int(pid))
        is_same = abs(process.create_time() - float(created)) < 1
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def read_uses(folder: Path) -> list[Use]:
    """Return what all clients last wished and when, on the machine's monotonic clock."""
    uses = []
    for path in entries_of(folder, "[!.]*"):
        with suppress(OSError, ValueError):
            last_event = (path.stat().st_mtime_ns - _START_NS) / 1e9
            uses.append(Use(float(path.read_text(encoding="ascii")), last_event))
    return uses


def request_mark(folder: Path) -> Path:
    """Return the file that this process holds locked while it has requests under way."""
    return folder / f"{_REQUEST}{record_name()}"


def kept_mark(folder: Path) -> Path:
    """Return the file that this process holds locked while it keeps the server from idling out."""
    return folder / f"{_KEPT}{record_name()}"


def requesters(folder: Path) -> list[int]:
    """Return the process ids of the clients that have requests under way."""
    return _owners(folder, _REQUEST)


def keepers(folder: Path) -> list[int]:
    """Return the process ids of those that keep the server in memory, in use or not."""
    return _owners(folder, _KEPT)


def remove_dead_marks(folder: Path) -> None:
    """Remove the marks of processes that are gone."""
    for kind in (_REQUEST, _KEPT):
        for path, pid in _marks(folder, kind):
            if not psutil.pid_exists(pid):
                path.unlink(missing_ok=True)


def _owners(folder: Path, kind: str) -> list[int]:
    return [pid for path, pid in _marks(folder, kind) if _is_locked(path)]


def _marks(folder: Path, kind: str) -> Iterator[tuple[Path, int]]:
    with suppress(OSError, ValueError):
        for path in entries_of(folder, f"{kind}*"):
            yield path, int(path.name.removeprefix(kind).partition("-")[0])


def _is_locked(path: Path) -> bool:
    try:
        return is_file_held(path)
    except OSError:
        return False


def _stamp(file: Path | int) -> None:
    now = _START_NS + time.monotonic_ns()
    os.utime(file, ns=(now, now))
