"""The files of this process's tickets: one that a request is done with serves the next.

To make a file costs more than all else that a request does with its ticket, and on a busy disk ten
times as much.
"""

import atexit
import os
from contextlib import suppress

from langchain_car_vllm.server.locks import close_lock, is_same_file, open_lock, try_exclusive
from langchain_car_vllm.server.tickets import Ticket, tear_up
from langchain_car_vllm.support.process_state import reset_after_fork

_MOST_KEPT = 8


class TicketFile:
    """A locked file, which others know for a ticket by its name alone.

    Args:
        folder: Where the tickets lie.
        ticket: What it is to show.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, folder: str, ticket: Ticket) -> None:
        self.folder = folder
        self._has_note = False
        self._path = f"{folder}/new-{ticket.order}"
        self._descriptor = open_lock(self._path)
        try:
            # Shown last, and locked, so that nobody takes it for a dead one's.
            try_exclusive(self._descriptor)
            self._rename(ticket.name)
        except BaseException:
            with suppress(OSError):
                self.tear_up()
            raise

    def show(self, ticket: Ticket) -> bool:
        """Show how far a request is; False where somebody has removed the file.

        Raises:
            OSError: The system refuses the new name.
        """
        path = f"{self.folder}/{ticket.name}"
        if path == self._path:
            return is_same_file(self._descriptor, path)
        try:
            self._rename(ticket.name)
        except FileNotFoundError:
            return False
        return True

    def note(self, text: bytes) -> None:
        """Write what others may read in it.

        Raises:
            OSError: The disk is full.
        """
        self._has_note = True
        os.pwrite(self._descriptor, text, 0)

    def keep(self, ticket: Ticket) -> None:
        """Keep it for the next request, as no ticket; one that was written into is torn up."""
        if self._has_note:
            self.tear_up()
            return
        try:
            self._rename(f"kept-{ticket.order}")
        except OSError:
            self.tear_up()
            return
        _kept.append(self)
        for file in _kept[:-_MOST_KEPT]:
            if _took(file):
                file.tear_up()

    def tear_up(self) -> None:
        """Remove it, and let it go."""
        try:
            tear_up(self._path)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Leave it as it is, without an owner."""
        close_lock(self._descriptor)

    def _rename(self, name: str) -> None:
        path = f"{self.folder}/{name}"
        os.replace(self._path, path)  # noqa: PTH105
        self._path = path


_kept: list[TicketFile] = []


def publish(folder: str, ticket: Ticket) -> TicketFile:
    """Return a file that shows a ticket.

    Raises:
        OSError: It cannot be made.
    """
    for file in [kept for kept in _kept if kept.folder == folder]:
        if _took(file):
            with suppress(OSError):
                if file.show(ticket):
                    return file
            with suppress(OSError):
                file.tear_up()
    return TicketFile(folder, ticket)


def _took(file: TicketFile) -> bool:
    """Take a kept file, unless another thread has taken it."""
    try:
        _kept.remove(file)
    except ValueError:
        return False
    return True


@atexit.register
def _tear_up_kept() -> None:
    while _kept:
        with suppress(OSError):
            _kept.pop().tear_up()


reset_after_fork(_kept.clear)
