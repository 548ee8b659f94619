"""What belongs to one process: a forked child begins without it.

A child has its parent's memory, but neither its threads nor its connections and leases. Locks of
the package are `ProcessLock`s, and whatever else a child must drop is registered with
`reset_after_fork`; no other module has a hook of its own.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from weakref import WeakSet

_locks: "WeakSet[ProcessLock]" = WeakSet()
_resets: list[Callable[[], object]] = []


class ProcessLock:
    """A lock that is free in a forked child where another thread of the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        _locks.add(self)

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock and return whether it was had."""
        is_taken = self._lock.acquire(blocking, timeout)
        if is_taken:
            self._owner = threading.get_ident()
        return is_taken

    def release(self) -> None:
        """Give the lock back; in a forked child, what its parent's threads held is free already."""
        self._owner = None
        with suppress(RuntimeError):
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def reset(self) -> None:
        """Free the lock, unless the thread that forked holds it."""
        if self._owner != threading.get_ident():
            self._lock = threading.Lock()
            self._owner = None


def reset_after_fork(reset: Callable[[], object]) -> None:
    """Have a function called in every forked child, in the order of registration."""
    _resets.append(reset)


def _reset() -> None:
    for lock in list(_locks):
        lock.reset()
    for reset in _resets:
        reset()


if hasattr(os, "register_at_fork"):  # not on Windows, which knows no fork
    os.register_at_fork(after_in_child=_reset)
