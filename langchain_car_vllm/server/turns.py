"""One request at a time, first come first served, across all processes."""

import itertools
import os
import threading
import time
from pathlib import Path

from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import is_held, open_lock, release, try_exclusive

_numbers = itertools.count()
_open: set[int] = set()
_open_guard = threading.Lock()


class Turn:
    """One request's place in the queue.

    A ticket is a file whose name tells when it was drawn and whose lock tells that its owner
    lives. The owner of the oldest live ticket may take `turn.lock`; the kernel gives both back
    however the owner dies.

    Args:
        directory: Of the server key.
    """

    def __init__(self, directory: ServerDirectory) -> None:
        self._folder = directory.turns
        name = f"{time.monotonic_ns():020d}-{os.getpid()}-{next(_numbers)}"
        self._ticket = self._folder / name
        scratch = self._folder / f".{name}"
        self._mine = _opened(scratch)
        try_exclusive(self._mine)
        scratch.replace(self._ticket)
        self._turn = _opened(directory.turn_lock)
        self._taken = False

    def try_take(self) -> bool:
        """Take the turn if it is this one's."""
        if not self._taken and not self._somebody_is_before():
            self._taken = try_exclusive(self._turn)
            if self._taken:
                self._ticket.unlink(missing_ok=True)
        return self._taken

    def give_back(self) -> None:
        """End the turn, or leave the queue; in a forked child it is not the child's to end."""
        if self._mine not in _open:
            return
        self._ticket.unlink(missing_ok=True)
        for descriptor in (self._mine, self._turn):
            with _open_guard:
                if descriptor in _open:
                    _open.remove(descriptor)
                    release(descriptor)
                    os.close(descriptor)

    def _somebody_is_before(self) -> bool:
        names = sorted(n for n in os.listdir(self._folder) if not n.startswith("."))  # noqa: PTH208
        for name in names:
            if name >= self._ticket.name:
                return False
            if _is_live(self._folder / name):
                return True
        return False


def _is_live(ticket: Path) -> bool:
    """Tell whether a ticket's owner lives; a dead one's ticket is torn up."""
    try:
        descriptor = os.open(ticket, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if is_held(descriptor):
            return True
        ticket.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    descriptor = open_lock(path)
    with _open_guard:
        _open.add(descriptor)
    return descriptor


def _forget_after_fork() -> None:
    global _open_guard  # noqa: PLW0603
    _open_guard = threading.Lock()
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
