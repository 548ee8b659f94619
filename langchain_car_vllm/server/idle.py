"""When a server has been idle for long enough. Pure: the clock is passed in."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Use:
    """One client process as the supervisor saw it.

    Attributes:
        keep_alive: Its latest wish in seconds; 0 stops at once, negative never.
        last_event: When its last request ended, on the supervisor's clock.
    """

    keep_alive: float
    last_event: float


def idle_deadline(uses: Iterable[Use], floor: float, default: float) -> float:
    """Return when the server may stop: the latest wish over all clients.

    Args:
        uses: One per client, the dead ones too: their records run out like any other.
        floor: An event that counts for all: readiness, or a release that was observed.
        default: The keep_alive that holds while there is no client.

    Returns:
        A point on the supervisor's clock, infinity for never.
    """
    wishes = list(uses) or [Use(default, floor)]
    return max(
        math.inf if use.keep_alive < 0 else max(use.last_event, floor) + use.keep_alive
        for use in wishes
    )
