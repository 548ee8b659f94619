"""Threads for what may block, so that no call waits for those of the event loop.

The loop's own executor is everybody's: a program that fills it with work of its own would hold
every call up. Steps of milliseconds share a few threads; what takes as long as others like has
threads of its own, so that it never stands in the way of a step.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

from langchain_car_vllm.process_state import ProcessLock, reset_after_fork

_STEPS: Final = "steps"
_WAITS: Final = "waits"
_MOST = {_STEPS: 16, _WAITS: 256}
P = ParamSpec("P")
T = TypeVar("T")

_lock = ProcessLock()
_pools: dict[str, ThreadPoolExecutor] = {}


async def run_step(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what takes some milliseconds in a thread and return its result."""
    return await _run(_STEPS, partial(function, *args, **kwargs))


def submit_step(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
    """Begin what takes some milliseconds in a thread; it is done whether anybody waits or not."""
    call = partial(function, *args, **kwargs)
    try:
        return _pool(_STEPS).submit(copy_context().run, call)
    except RuntimeError:  # the interpreter ends, and begins nothing any more
        done: Future[T] = Future()
        done.set_result(call())
        return done


async def run_wait(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what may take as long as a network, a disk or an import likes, and return its result."""
    return await _run(_WAITS, partial(function, *args, **kwargs))


async def _run(kind: str, call: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool(kind), copy_context().run, call)


def _pool(kind: str) -> ThreadPoolExecutor:
    with _lock:
        if kind not in _pools:
            name = f"langchain_car_vllm.{kind}"
            _pools[kind] = ThreadPoolExecutor(_MOST[kind], thread_name_prefix=name)
        return _pools[kind]


reset_after_fork(_pools.clear)
