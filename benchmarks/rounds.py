"""Measures by turns: what one round suffers from the machine, all suffer alike."""

import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from statistics import median

Measured = dict[str, list[float]]


_MANY = 50


def _begin(rounds: int) -> None:
    """Have nobody pay for another's garbage, where that does not take longer than the calls."""
    if rounds < _MANY:
        gc.collect()


def _orders(names: list[str], rounds: int) -> list[list[str]]:
    """Return who comes when: each round begins with another one."""
    return [names[n % len(names) :] + names[: n % len(names)] for n in range(rounds)]


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> Measured:
    """Return the seconds of each call in each round, after a call to warm up."""
    for call in calls.values():
        call()
    times: Measured = {name: [] for name in calls}
    for order in _orders(list(calls), rounds):
        for name in order:
            _begin(rounds)
            began = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - began)
    return times


async def ainterleaved(
    calls: Mapping[str, Callable[[], Awaitable[object]]], rounds: int
) -> Measured:
    """Do the same in an event loop."""
    for call in calls.values():
        await call()
    times: Measured = {name: [] for name in calls}
    for order in _orders(list(calls), rounds):
        for name in order:
            _begin(rounds)
            began = time.perf_counter()
            await calls[name]()
            times[name].append(time.perf_counter() - began)
    return times


def medians(times: Measured, scale: float = 1.0) -> dict[str, float]:
    """Return the median of each call's rounds, times `scale`."""
    return {name: median(values) * scale for name, values in times.items()}


def ratio(times: Measured, ours: str, theirs: str) -> float:
    """Return the median over the rounds of our time against theirs in the same round."""
    return median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
