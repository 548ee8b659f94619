"""Telling a process that is slow from one that does nothing."""

import time
from collections.abc import Callable
from contextlib import suppress

import psutil


class Stall:
    """Tells silence from slowness.

    Args:
        limit: Seconds without a sign of life that are too many, 0 for none.
        look: Returns what changes while there is life; it is costly and asked about once a second.
    """

    def __init__(self, limit: float, look: Callable[[], object]) -> None:
        self._limit = limit
        self._look = look
        self._interval = min(1.0, limit / 10)
        self._seen: object = None
        self._silence = 0.0
        self._looked_at = time.monotonic()

    def is_stalled(self) -> bool:
        """Return whether there was no sign of life for too long."""
        now = time.monotonic()
        if not self._limit or now - self._looked_at < self._interval:
            return False
        unseen, self._looked_at = now - self._looked_at, now
        # A container may have been paused, or this process suspended: that alone is not silence.
        self._silence += min(unseen, self._limit / 2)
        if (seen := self._look()) != self._seen:
            self._seen, self._silence = seen, 0.0
        return self._silence > self._limit


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children, 0 when it is gone."""
    try:
        processes = [root := psutil.Process(pid)]
        with suppress(OSError):  # in a sandbox it is seen alone
            processes += root.children(recursive=True)
        times = [process.cpu_times() for process in processes]
    except psutil.Error:
        return 0.0
    return float(sum(t.user + t.system for t in times))
