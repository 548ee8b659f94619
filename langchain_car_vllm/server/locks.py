"""Kernel locks: they end with the process that holds them, however it dies.

`flock` locks belong to an open file description, which a forked child shares: it closes its copies
at once, or it would hold what its parent gave back. Lock files that are taken more than once
are never unlinked: a lock on a name that was removed and made again locks nothing.
"""

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from langchain_car_vllm.runtime.host import unsupported_platform
from langchain_car_vllm.support.process_state import reset_after_fork

try:
    import fcntl
except ImportError as error:
    raise unsupported_platform() from error

_open: set[int] = set()
_libc = ctypes.PyDLL(None)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOOK = (fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_UN)


def open_lock(path: str | Path) -> int:
    """Open a lock file, read-write since some filesystems want that, and return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    _open.add(descriptor)
    return descriptor


def open_existing(path: str | Path) -> int:
    """Open a lock file that must be there, be it only to be read: a look needs no more.

    Raises:
        FileNotFoundError: It is not.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _open.add(descriptor)
    return descriptor


def close_lock(descriptor: int) -> None:
    """Give the lock back, for forked children too, and close the file."""
    _open.discard(descriptor)
    with suppress(OSError):
        release(descriptor)
    os.close(descriptor)


def hand_over(descriptor: int) -> None:
    """Close the file and leave the lock to the child process that inherited it."""
    _open.discard(descriptor)
    os.close(descriptor)


@contextmanager
def opened_lock(path: Path) -> Iterator[int]:
    """Open a lock file for the time of a block."""
    descriptor = open_lock(path)
    try:
        yield descriptor
    finally:
        close_lock(descriptor)


@contextmanager
def opened_existing(path: Path) -> Iterator[int]:
    """Open a lock file that must be there for the time of a block, for a look.

    Raises:
        FileNotFoundError: It is not.
    """
    descriptor = open_existing(path)
    try:
        yield descriptor
    finally:
        close_lock(descriptor)


def file_identity(file: Path | int) -> tuple[int, int] | None:
    """Return what tells a file from another of the same name, None where there is none.

    Args:
        file: Its name, or a descriptor.
    """
    try:
        found = os.stat(file)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def is_same_file(descriptor: int, path: str | Path) -> bool:
    """Tell whether a lock file is still the one that its name leads to."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


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
    longer than that (`acquire_exclusive`). It is an instant because both calls are one for the
    interpreter: `fcntl.flock` gives it away, so that in a busy program the lock would be held until
    this thread's next turn, and with many threads always by one of them.
    """
    taken, _ = list(map(_libc.flock, (descriptor, descriptor), _LOOK))
    if taken == 0:
        return False
    if not try_shared(descriptor):  # an error is raised as what it is
        return True
    release(descriptor)
    return False


def is_file_held(path: str | Path) -> bool:
    """Tell whether somebody holds the exclusive lock of a file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    descriptor = open_existing(path)
    try:
        return is_held(descriptor)
    finally:
        close_lock(descriptor)


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


def _close_after_fork() -> None:
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


reset_after_fork(_close_after_fork)
