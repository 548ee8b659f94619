"""Tickets of requests, in files that all processes see, and the decision who may send.

A ticket is a file. Its name tells when it was drawn, how many tokens it asks for and how far its
request has come; its lock tells that its owner lives, and the kernel gives that back however the
owner dies. The decision itself is pure.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import psutil

from langchain_car_vllm.server.locks import is_file_held
from langchain_car_vllm.support.file_presence import entries_of

_LOOKS = 5
_WORDS = ("new", "kept", "lock")
_PARTS = 3
Stage = Literal["waiting", "prefill", "answering"]
Verdict = Literal["enter", "behind", "prefill", "abandoned", "room", "company", "within"]


class Ticket(NamedTuple):
    """One request's place.

    Attributes:
        order: When it was drawn; the smaller is the older, and goes first.
        tokens: Of its prompt and its answer.
        stage: How far its request has come.
        generation: Of the server that it is for.
        live: Whether its owner lives and still cares.
    """

    order: str
    tokens: int
    stage: Stage
    generation: int = 1
    live: bool = True

    @property
    def pid(self) -> int:
        """The process that drew it, 0 where its order does not tell."""
        return _pid_in(self.order)

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.order}.{self.generation}.{self.tokens}.{self.stage}"


class Rules(NamedTuple):
    """What a server can take.

    Attributes:
        serial_prefill: Whether it may read one prompt at a time only.
        room: Tokens of all requests together, None where it is not known.
        sequences: Requests at the same time, None where it is not known.
    """

    serial_prefill: bool = False
    room: int | None = None
    sequences: int | None = None


def decide(
    mine: Ticket, tickets: Sequence[Ticket], rules: Rules, outer: Collection[str] = ()
) -> Verdict:
    """Return whether a request may be sent, or what it waits for.

    First come, first served: nobody overtakes an older request that waits, whatever that waits for,
    so nobody waits forever. A request that was abandoned while its prompt was read counts until the
    server has let go of it. One whose end waits for this one does not count as company: the server
    queues what it cannot answer at once.

    Args:
        mine: The request.
        tickets: Of all requests.
        rules: What the server can take.
        outer: The orders of the requests that this one is made within.
    """
    others = [t for t in tickets if t.order != mine.order and (t.live or t.stage == "prefill")]
    if any(t.stage == "waiting" and t.order < mine.order for t in others):
        return "behind"
    admitted = [t for t in others if t.stage != "waiting"]
    read = [t for t in admitted if t.stage == "prefill"]
    if rules.serial_prefill and read:
        return "prefill" if any(t.live for t in read) else "abandoned"
    company = [t for t in admitted if t.order not in outer]
    if rules.sequences is not None and company and len(company) >= rules.sequences:
        return "company"
    if rules.room is None or _fits([*admitted, mine], rules.room):
        return "enter"
    around = [t for t in admitted if t.order in outer]
    return "room" if _fits([*around, mine], rules.room) else "within"


def _fits(tickets: Sequence[Ticket], room: int) -> bool:
    return len(tickets) == 1 or kv_tokens([t.tokens for t in tickets]) <= room


def kv_tokens(requests: Sequence[int]) -> int:
    """Return the room that requests take together.

    A batch is as wide as its longest row: mlx-lm and mlx-vlm pad the others.
    """
    return max(requests, default=0) * len(requests)


def read_ticket(name: str) -> Ticket | None:
    """Return the ticket that a file's name stands for, None for another file."""
    order, *rest = name.split(".")
    if len(rest) != _PARTS or not all(part.isdecimal() for part in rest[:2]):
        return None
    generation, tokens, stage = rest
    if not order or stage not in get_args(Stage):
        return None
    return Ticket(order, int(tokens), cast("Stage", stage), int(generation))


def read_tickets(
    folder: str | Path, generation: int, *, leave_out: str | None = None
) -> list[Ticket]:
    """Return the tickets of a server; what dead owners left is torn up.

    Those that died while their prompt was read stay: that very server may still be reading.

    Args:
        folder: Where the tickets lie.
        generation: Of the server.
        leave_out: The order of one that is not looked at.
    """
    for _ in range(_LOOKS):
        found, is_complete = _look(folder, generation, leave_out)
        if is_complete:
            break
    return found


def _look(folder: str | Path, generation: int, leave_out: str | None) -> tuple[list[Ticket], bool]:
    """Return the tickets, and whether none was renamed or removed during the look."""
    found, is_complete = [], True
    for name in os.listdir(folder):  # noqa: PTH208 - many looks, no `Path` each
        ticket = read_ticket(name)
        if ticket is None or ticket.order == leave_out:
            continue
        live = _is_live(f"{folder}/{name}")
        is_complete = is_complete and live is not None
        is_read = ticket.stage == "prefill" and ticket.generation == generation
        if live or (live is False and is_read):
            found.append(ticket._replace(live=live))
        elif live is False:
            tear_up(f"{folder}/{name}")
    return found, is_complete


def tear_up_abandoned(
    folder: str | Path, generation: int, lost: Collection[str] = frozenset()
) -> None:
    """Remove the tickets whose owners died, or left, while their prompt was read.

    Args:
        folder: Where the tickets lie.
        generation: Of the server.
        lost: Orders of further tickets whose owners are as good as dead.
    """
    for ticket in read_tickets(folder, generation):
        if ticket.stage == "prefill" and (not ticket.live or ticket.order in lost):
            tear_up(f"{folder}/{ticket.name}")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are gone have left beside their tickets.

    Such a file has the order of the ticket that it was, or was to be, behind a word.
    """
    for path in entries_of(folder, "*-*"):
        word, _, order = path.name.partition("-")
        if word in _WORDS and not psutil.pid_exists(_pid_in(order)):
            path.unlink(missing_ok=True)


def tear_up(path: str) -> None:
    """Remove a ticket that may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def _is_live(path: str) -> bool | None:
    """Tell whether a ticket's owner lives, None where it is gone or has just been renamed."""
    try:
        return is_file_held(path)
    except FileNotFoundError:
        return None


def _pid_in(order: str) -> int:
    """Return the process that an order names, 0 where it does not tell."""
    pid = order.partition("-")[2].partition("-")[0]
    return int(pid) if pid.isdecimal() else 0
