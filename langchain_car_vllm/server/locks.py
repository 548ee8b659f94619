"""Kernel locks: they end with the process that holds them, however it dies.

`flock` locks belong to an open file description. Lock files are never unlinked: a lock on a name
that was removed and made again is no lock at all.
"""

import fcntl
import os
import time
from pathlib import Path


def open_lock(path: Path) -> int:
    """Open a lock file, read-write since some filesystems want that, and return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_exclusive(descriptor: int) -> bool:
    """Take the exclusive lock if nobody holds any."""
    return _try(descriptor, fcntl.LOCK_EX)


def try_shared(descriptor: int) -> bool:
    """Take a shared lock if nobody holds the exclusive one."""
    return _try(descriptor, fcntl.LOCK_SH)


def release(descriptor: int) -> None:
    """Give the lock back and keep the file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_held(descriptor: int) -> bool:
    """Tell whether another open file holds the exclusive lock.

    The look takes a shared lock for an instant, so whoever wants the exclusive one must try for
    longer than that (`acquire_exclusive`).
    """
    if not try_shared(descriptor):
        return True
    release(descriptor)
    return False


def acquire_exclusive(descriptor: int, patience: float) -> bool:
    """Take the exclusive lock, trying for `patience` seconds."""
    deadline = time.monotonic() + patience
    while not try_exclusive(descriptor):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def _try(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
