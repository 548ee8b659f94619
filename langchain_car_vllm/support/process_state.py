"""What belongs to one process: a forked child begins without it.

A child has its parent's memory, but neither its threads nor its connections and leases. Locks of
the package are `ProcessLock`s, what an object computes once is a `KeptProperty`, and whatever else
a child must drop is registered with `reset_after_fork`; no other module has a hook of its own.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")
_IMPORT_SECONDS = 60.0
_gate = threading.RLock()
_imports: dict[str, Any] = {}
"""A lock for each module that is imported whole: a fork takes them all."""
_locks: "WeakSet[ProcessLock]" = WeakSet()
_whole: set[str] = set()
_resets: list[Callable[[], object]] = []


def _take(lock: Any, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002
    """Take a lock and return whether it was had; whoever is interrupted meanwhile has it not."""
    taken: list[bool] = []
    try:
        # One call takes the lock and notes it: no signal is heard between the two.
        taken.extend(map(lock.acquire, (blocking,), (timeout,)))
        return taken[0]
    except BaseException:
        if any(taken):
            lock.release()
        raise


class ProcessLock:
    """A lock that is free in a forked child where another thread of the parent held it.

    Ctrl-C leaves no lock of a block behind, also where it comes between taking the lock and the
    block: Python 3.14 looks for signals there, so that its own locks stay taken. What the garbage
    collector ends, such as a stream that nobody read to its end, is ended in any thread and at any
    moment: the thread that holds a lock may take it again.

    Args:
        reentrant: False for a lock that nobody takes twice, and that any thread may give back.
    """

    def __init__(self, *, reentrant: bool = True) -> None:
        self._make: Callable[[], Any] = threading.RLock if reentrant else threading.Lock
        self._lock: Any = self._make()
        _locks.add(self)

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock and return whether it was had."""
        return _take(self._lock, blocking, timeout)

    def release(self) -> None:
        """Give the lock back; in a forked child, what its parent's threads held is free already."""
        with suppress(RuntimeError):
            self._lock.release()

    def is_mine(self) -> bool:
        """Tell whether this very thread holds the lock, which has to be reentrant."""
        return bool(self._lock._is_owned())  # noqa: SLF001 - as `threading.Condition` asks

    def __enter__(self) -> None:
        _take(self._lock)

    # A function of Python's own would be interrupted before it gives the lock back.
    __exit__ = property(attrgetter("_lock.__exit__"))

    def reset(self) -> None:
        """Free the lock, unless the thread that forked holds it and will give it back."""
        if self._make is threading.Lock or not self.is_mine():
            self._lock = self._make()


class KeptProperty(Generic[T]):
    """A property that is computed once and kept in the object; two threads may both compute it.

    `functools.cached_property` holds a lock of all objects meanwhile (Python 3.11), for which a
    child that is forked then would wait forever.

    Args:
        compute: Returns what the property is of an object.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, holder: Any, owner: type | None = None) -> T:
        if holder is None:
            return self  # type: ignore[return-value]
        found: T = vars(holder).setdefault(self._name, self._compute(holder))
        return found


def reset_after_fork(reset: Callable[[], object]) -> None:
    """Have a function called in every forked child, in the order of registration."""
    _resets.append(reset)


def import_whole(module: str) -> None:
    """Import what only some calls need, which a fork waits for.

    A child has its parent's memory without the other threads: what one of them was importing would
    stay half imported there, and whoever needs it would wait forever.
    """
    if module in _whole:
        return
    _take(_gate)
    try:
        lock = _imports.setdefault(module, threading.RLock())
    finally:
        _gate.release()
    _take(lock)
    try:
        import_module(module)
        _whole.add(module)
    finally:
        lock.release()


def _await_imports() -> None:
    """Wait until no other thread imports, a minute at most, and let none begin."""
    deadline = time.monotonic() + _IMPORT_SECONDS
    _gate.acquire()
    for lock in _imports.values():
        lock.acquire(timeout=max(deadline - time.monotonic(), 0))


def _release_imports() -> None:
    for lock in (*_imports.values(), _gate):
        with suppress(RuntimeError):  # the wait was given up
            lock.release()


def _reset() -> None:
    for lock in list(_locks):
        lock.reset()
    for reset in _resets:
        reset()


if hasattr(os, "register_at_fork"):  # not on Windows, which knows no fork
    os.register_at_fork(
        before=_await_imports,
        after_in_parent=_release_imports,
        after_in_child=_release_imports,
    )
    os.register_at_fork(after_in_child=_reset)
