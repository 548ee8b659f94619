"""One request at a time, first come first served, across all processes."""

import itertools
import os
import time
from pathlib import Path

from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.locks import (
    close_lock,
    is_held,
    open_existing,
    open_lock,
    try_exclusive,
)

_numbers = itertools.count()


class Turn:
    """One request's place in the queue.

    A ticket is a file whose name tells when it was drawn and whose lock tells that its owner
    lives. The owner of the oldest live ticket may take `turn.lock`; the kernel gives both back
    however the owner dies.

    Args:
        directory: Of the server key.

    Raises:
        StateDirectoryError: The ticket cannot be written.
    """

    def __init__(self, directory: ServerDirectory) -> None:
        self._folder = directory.turns
        self._process = os.getpid()
        self._descriptors: list[int] = []
        name = f"{time.monotonic_ns():020d}-{os.getpid()}-{next(_numbers)}"
        self._ticket = self._folder / name
        self._taken = False
        with explain_os_errors(self._folder):
            try:
                self._draw(self._folder / f".{name}", directory.turn_lock)
            except BaseException:
                self.give_back()
                raise

    def _draw(self, scratch: Path, turn_lock: Path) -> None:
        """Publish the ticket last, and locked, so that nobody takes it for a dead one's."""
        self._turn = open_lock(turn_lock)
        self._descriptors.append(self._turn)
        mine = open_lock(scratch)
        self._descriptors.append(mine)
        try_exclusive(mine)
        scratch.replace(self._ticket)

    def try_take(self) -> bool:
        """Take the turn if it is this one's."""
        if not self._taken and not self._somebody_is_before():
            self._taken = try_exclusive(self._turn)
            if self._taken:
                self._ticket.unlink(missing_ok=True)
        return self._taken

    def give_back(self) -> None:
        """End the turn, or leave the queue; in a forked child it is not the child's to end."""
        if self._process != os.getpid():
            return
        self._ticket.unlink(missing_ok=True)
        while self._descriptors:
            close_lock(self._descriptors.pop())

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
        descriptor = open_existing(ticket)
    except FileNotFoundError:
        return False
    try:
        if is_held(descriptor):
            return True
        ticket.unlink(missing_ok=True)
        return False
    finally:
        close_lock(descriptor)
