"""Whose memory a start may take, and when it has to wait for others. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Place = tuple[float, str]
"""When a start began to wait for memory, and its key: starts are served in this order."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another server, or a start that waits for memory.

    Attributes:
        key: Its server key.
        reservation: Bytes that it has set aside.
        is_evictable: Whether it is ready, so that it can make room.
        is_leaving: Whether it is stopping, so that it makes room by itself.
        is_idle: Whether it serves nobody.
        order: Sorts those that go first before those that go last.
        place: Its place in the queue for memory, None where it does not wait.
        needed: Bytes that it waits for.
        victims: Keys of the servers that make room for it.
    """

    key: str
    reservation: int = 0
    is_evictable: bool = False
    is_leaving: bool = False
    is_idle: bool = False
    order: tuple[float, ...] = ()
    place: Place | None = None
    needed: int = 0
    victims: tuple[str, ...] = ()


class Decision(NamedTuple):
    """What a start may do.

    Attributes:
        is_granted: Whether the memory is its own now.
        free: Bytes that nobody has set aside or was promised.
        victims: Keys of the servers that are to make room; empty where no set of them suffices.
    """

    is_granted: bool
    free: int
    victims: tuple[str, ...] = ()


def decide(
    needed: int,
    place: Place,
    budget: int,
    others: Sequence[Neighbour],
    *,
    is_impatient: bool = False,
) -> Decision:
    """Decide on one start: earlier ones come first, and nobody is sent away in vain.

    What an earlier start waits for beyond what its victims will give is promised to it. Later
    starts that fit beside that need not wait.

    Args:
        needed: Bytes that it wants.
        place: Its own place in the queue.
        budget: Bytes that all servers may take together.
        others: All other servers and starts.
        is_impatient: Whether those it asked have not made room for long: then all that could help
            are asked.
    """
    reserved = {other.key: other.reservation for other in others}
    earlier = [other for other in others if other.place is not None and other.place < place]
    taken = {key for other in earlier for key in other.victims}
    promised = sum(
        max(0, other.needed - sum(reserved.get(key, 0) for key in other.victims))
        for other in earlier
    )
    free = budget - sum(reserved.values()) - promised
    if needed <= free:
        return Decision(True, free)  # noqa: FBT003
    candidates = sorted(
        (o for o in others if _can_help(o) and o.key not in taken),
        key=lambda other: (not other.is_leaving, not other.is_idle, *other.order),
    )
    unused = [other for other in candidates if other.is_leaving or other.is_idle]
    chosen = _least_sufficing(unused, needed - free)
    if not chosen:
        chosen = _least_sufficing(candidates, needed - free)
        if chosen and is_impatient:
            chosen = candidates
    return Decision(False, free, tuple(other.key for other in chosen))  # noqa: FBT003


def _can_help(other: Neighbour) -> bool:
    return other.reservation > 0 and (other.is_evictable or other.is_leaving)


def _least_sufficing(candidates: Iterable[Neighbour], missing: int) -> list[Neighbour]:
    """Return the first candidates that give what is missing and nobody too many, else none."""
    chosen: list[Neighbour] = []
    for candidate in candidates:
        if missing <= 0:
            break
        chosen.append(candidate)
        missing -= candidate.reservation
    if missing > 0:
        return []
    for candidate in reversed(chosen[:]):
        if missing + candidate.reservation <= 0:
            chosen.remove(candidate)
            missing += candidate.reservation
    return chosen
