"""Whether and when a server that crashed may start again; the clock is passed in."""

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.support.file_presence import entries_of


def recent_crashes(crashes: Sequence[float], now: float, policy: Policy) -> tuple[float, ...]:
    """Return the crashes that still count, oldest first."""
    return tuple(crash for crash in crashes if now - crash < policy.crash_window)


def take_blamed(folder: Path, now: float, policy: Policy) -> set[float]:
    """Return the crashes that single requests took the blame for; old entries are removed."""
    blamed = set()
    for entry in entries_of(folder):
        with suppress(ValueError, OSError):
            crash = float(entry.name)
            if now - crash < policy.crash_window:
                blamed.add(crash)
            else:
                entry.unlink()
    return blamed


def is_spent(crashes: Sequence[float], policy: Policy) -> bool:
    """Tell whether the restarts that the budget allows are used up."""
    return len(crashes) > policy.crash_budget


def start_time(crashes: Sequence[float], policy: Policy, source: random.Random) -> float:
    """Return the earliest time of the next start.

    Args:
        crashes: Those that still count, oldest first.
        policy: Holds the delays.
        source: Of the jitter: between half and all of the delay is waited.
    """
    if not crashes:
        return 0.0
    delay = policy.backoff[min(len(crashes), len(policy.backoff)) - 1]
    return crashes[-1] + delay * source.uniform(0.5, 1.0)
