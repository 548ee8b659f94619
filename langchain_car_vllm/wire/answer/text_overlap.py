"""Where the end of a text may be the beginning of another."""

from typing import AnyStr


def overlap(text: AnyStr, stop: AnyStr) -> int:
    """Return how many last characters of `text` could begin `stop`, less than all of it."""
    start = max(len(text) - len(stop) + 1, 0)
    while (start := text.find(stop[:1], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
