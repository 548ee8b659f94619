"""What belongs to one process: a forked child begins without it.

A child has its parent's memory, but neither its threads nor its connections and leases. Locks of
the package are `ProcessLock`s, and whatever else a child must drop is registered with
`reset_after_fork`; no other module has a hook of its own.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import Protocol
from weakref import WeakSet


class _Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...  # noqa: FBT001, FBT002

    def release(self) -> None: ...


_IMPORT_SECONDS = 60.0
_importing = threading.RLock()
_locks: "WeakSet[ProcessLock]" = WeakSet()
_resets: list[Callable[[], object]] = []


class ProcessLock:
    """A lock that is free in a forked child where another thread of the parent held it.

    Args:
        reentrant: Whether the thread that holds it may take it again. What the garbage collector
            ends, such as a stream that nobody read to its end, is ended in any thread and at any
            moment: a lock that it takes has to be of this kind.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        self._make: Callable[[], _Lock] = threading.RLock if reentrant else threading.Lock
        self._lock: _Lock = self._make()
        self._owner: int | None = None
        self._depth = 0
        _locks.add(self)

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock and return whether it was had."""
        is_taken = self._lock.acquire(blocking, timeout)
        if is_taken:
            self._owner = threading.get_ident()
            self._depth += 1
        return is_taken

    def release(self) -> None:
        """Give the lock back; in a forked child, what its parent's threads held is free already."""
        self._depth = max(0, self._depth - 1)
        if not self._depth:
            self._owner = None
        with suppress(RuntimeError):
            self._lock.release()

    def is_mine(self) -> bool:
        """Tell whether this very thread holds the lock."""
        return self._owner == threading.get_ident()

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
            self._lock = self._make()
            self._owner, self._depth = None, 0


def reset_after_fork(reset: Callable[[], object]) -> None:
    """Have a function called in every forked child, in the order of registration."""
    _resets.append(reset)


def import_whole(module: str) -> None:
    """Import what takes long, which a fork waits for.

    A child has its parent's memory without the other threads: what one of them was importing would
    stay half imported there, and whoever needs it would wait forever.
    """
    with _importing:
        import_module(module)


def _release_imports() -> None:
    with suppress(RuntimeError):  # the wait was given up
        _importing.release()


def _reset() -> None:
    for lock in list(_locks):
        lock.reset()
    for reset in _resets:
        reset()


if hasattr(os, "register_at_fork"):  # not on Windows, which knows no fork
    os.register_at_fork(
        before=lambda: _importing.acquire(timeout=_IMPORT_SECONDS),
        after_in_parent=_release_imports,
        after_in_child=_release_imports,
    )
    os.register_at_fork(after_in_child=_reset)
