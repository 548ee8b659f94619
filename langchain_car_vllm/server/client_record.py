"""Records of the client processes: their keep_alive, touched when a request ends.

The modification time is the monotonic clock's: it is as fine as the uses are short, and no change
of the wall clock disturbs the order of uses.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil


def record_name() -> str:
    """Return the name of this process's record."""
    return f"{os.getpid()}-{psutil.Process().create_time():.2f}"


def write_record(path: Path, keep_alive: float) -> None:
    """Replace this process's record."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(f"{keep_alive!r}\n", encoding="ascii")
    _stamp(scratch)
    scratch.replace(path)


def touch_record(path: Path, keep_alive: float) -> None:
    """Tell that a request ended."""
    try:
        _stamp(path)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            write_record(path, keep_alive)


def _stamp(path: Path) -> None:
    now = time.monotonic_ns()
    os.utime(path, ns=(now, now))
