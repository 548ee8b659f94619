"""Whose memory a start may take, and when it has to wait for others. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

Place = tuple[float, str]
"""When a start began to wait for memory, and its key: starts are served in this order."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another server, or a start that waits for memory.

    Attributes:
        key: Its server key.
        reservation: Bytes that it has set aside.
        spare: Bytes of them that it can give away and go on, or load on.
        is_evictable: Whether it is ready, so that it can make room.
        is_leaving: Whether it is stopping, so that it makes room by itself.
        is_idle: Whether it serves nobody.
        order: Sorts those that go first before those that go last.
        place: Its place in the queue for memory, None where it does not wait.
        needed: Bytes that it waits for.
        victims: Keys of the servers that make room for it.
        shrinks: Keys of the servers that make room and go on, and the bytes that these keep.
    """

    key: str
    reservation: int = 0
    spare: int = 0
    is_evictable: bool = False
    is_leaving: bool = False
    is_idle: bool = False
    order: tuple[float, ...] = ()
    place: Place | None = None
    needed: int = 0
    victims: tuple[str, ...] = ()
    shrinks: Mapping[str, int] = field(default_factory=dict)


class Decision(NamedTuple):
    """What a start may do.

    Attributes:
        is_granted: Whether the memory is its own now.
        free: Bytes that nobody has set aside or was promised.
        victims: Keys of the servers that are to end; empty where no set of them suffices.
        shrinks: Keys of the servers that are to go on with less, and the bytes that they keep.
    """

    is_granted: bool
    free: int
    victims: tuple[str, ...] = ()
    shrinks: Mapping[str, int] = MappingProxyType({})


def decide(
    needed: int,
    place: Place,
    budget: int,
    others: Sequence[Neighbour],
    *,
    is_impatient: bool = False,
) -> Decision:
    """Decide on one start: earlier ones come first, and nobody is sent away in vain.

    Servers that can go on with less give what they can before any is ended.

    What an earlier start waits for beyond what its victims will give is promised to it. Later
    starts that fit beside that need not wait.

    Args:
        needed: Bytes that it wants.
        place: Its own place in the queue.
        budget: Bytes that all servers may take together.
        others: All other servers and starts.
        is_impatient: Whether those it asked have not made room for long: then those without
            requests go where that is enough, and where others have to, all that could help.
    """
    earlier = sorted((o for o in others if o.place is not None and o.place < place), key=_place)
    taken = {key for other in earlier for key in other.victims}
    levels, promised = _promised({o.key: o.reservation for o in others}, earlier)
    free = budget - sum(other.reservation for other in others) - promised
    if needed <= free:
        return Decision(True, free)  # noqa: FBT003
    candidates = sorted(
        (o for o in others if _can_help(o) and o.key not in taken),
        key=lambda other: (not other.is_leaving, not other.is_idle, *other.order),
    )
    unused = [other for other in candidates if other.is_leaving or other.is_idle]
    leaving = [other for other in candidates if other.is_leaving or other.is_evictable]
    ways = [(candidates, unused), (candidates, leaving)]
    if is_impatient:
        ways.insert(0, (unused, unused))
    for givers, leavers in ways:
        spare = {other.key: _spare(other, levels[other.key]) for other in givers}
        missing = needed - free - sum(spare.values())
        kept = [(other, levels[other.key] - spare.get(other.key, 0)) for other in leavers]
        victims = _least_sufficing(kept, missing)
        if victims or missing <= 0:
            break
    else:
        return Decision(False, free)  # noqa: FBT003
    if is_impatient and leavers is leaving:
        victims = [other for other in leaving if other in victims or other not in unused]
    missing = needed - free - sum(levels[other.key] for other in victims)
    given = {key: n for key, n in spare.items() if key not in {other.key for other in victims}}
    shrinks = _shrinks(missing, given, levels)
    return Decision(False, free, tuple(other.key for other in victims), shrinks)  # noqa: FBT003


def _shrinks(missing: int, spare: Mapping[str, int], levels: Mapping[str, int]) -> dict[str, int]:
    """Return what servers keep of what they have where the first of them give what is missing."""
    shrinks = {}
    for key, most in spare.items():
        if (given := min(most, missing)) > 0:
            shrinks[key] = levels[key] - given
            missing -= given
    return shrinks


def company_to_give(lacking: int, spare: Mapping[str, int]) -> dict[str, int]:
    """Return what servers give another that lacks room for company, all of them alike.

    Args:
        lacking: Bytes that it would have if it were alone.
        spare: Bytes that each can do without, by key.
    """
    most = sum(spare.values())
    wanted = max(0, min(lacking, most))
    return {key: -(-n * wanted // most) for key, n in spare.items() if n and wanted}


def _place(other: Neighbour) -> Place:
    return other.place or (0.0, "")


def _promised(levels: dict[str, int], earlier: Sequence[Neighbour]) -> tuple[dict[str, int], int]:
    """Return what servers keep once earlier starts got theirs, and what these lack beyond that."""
    reserved, promised = dict(levels), 0
    for other in earlier:
        gained = sum(reserved.get(key, 0) for key in other.victims)
        for key, kept in other.shrinks.items():
            gained += max(0, levels.get(key, 0) - kept)
            levels[key] = min(levels.get(key, 0), kept)
        promised += max(0, other.needed - gained)
    return levels, promised


def _spare(other: Neighbour, level: int) -> int:
    """Return what a server can still give and go on."""
    given_already = other.reservation - level
    return max(0, other.spare - given_already)


def _can_help(other: Neighbour) -> bool:
    return other.reservation > 0 and (other.is_evictable or other.is_leaving or other.spare > 0)


def _least_sufficing(candidates: Iterable[tuple[Neighbour, int]], missing: int) -> list[Neighbour]:
    """Return the first candidates that give what is missing and nobody too many, else none."""
    chosen: list[tuple[Neighbour, int]] = []
    for candidate in candidates:
        if missing <= 0:
            break
        chosen.append(candidate)
        missing -= candidate[1]
    if missing > 0:
        return []
    for candidate in reversed(chosen[:]):
        if missing + candidate[1] <= 0:
            chosen.remove(candidate)
            missing += candidate[1]
    return [other for other, _ in chosen]
