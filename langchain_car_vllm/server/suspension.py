"""Requests whose programs somebody has suspended: their turn is given to others after a while."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from langchain_car_vllm.server.locks import close_lock, open_lock
from langchain_car_vllm.server.process import is_suspended
from langchain_car_vllm.server.tickets import Ticket, read_ticket

_PAUSE = 1.0


class Suspensions:
    """What one waiting request, or a supervisor, has seen of the programs before it.

    Args:
        patience: Seconds for a suspended program to go on.

    Attributes:
        patience: The same.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._since: dict[str, float] = {}
        self._looked = 0.0

    def lost(self, tickets: Sequence[Ticket]) -> set[str]:
        """Return the orders of the tickets whose owners have been suspended for too long."""
        if not tickets and not self._since:
            return set()
        now = time.monotonic()
        pause = min(_PAUSE, self.patience / 4)
        if now - self._looked >= pause:
            self._looked = now
            # A program asks each other one once, however many requests it has.
            others = {t.pid for t in tickets if t.live} - {0, os.getpid()}
            suspended = {pid for pid in others if is_suspended(pid)}
            seen = [t.order for t in tickets if t.live and t.pid in suspended]
            self._since = {order: self._since.get(order, now) for order in seen}
        return {o for o, since in self._since.items() if now - since >= self.patience}

    def take_turn(self, folder: str | Path, turn_lock: Path, order: str) -> None:
        """Replace the lock where a program may be holding it that was suspended for too long.

        Args:
            folder: Where the tickets lie.
            turn_lock: The lock.
            order: Of who wants it.
        """
        # Many may want it in the same instant, so that no ticket is opened here.
        names = os.listdir(folder)  # noqa: PTH208
        tickets = [ticket for ticket in map(read_ticket, names) if ticket]
        if self.lost([ticket for ticket in tickets if ticket.order != order]):
            scratch = f"{folder}/lock-{order}"
            close_lock(open_lock(scratch))
            os.replace(scratch, turn_lock)  # noqa: PTH105
