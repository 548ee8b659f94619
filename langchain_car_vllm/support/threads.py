"""Threads for what may block, so that no call waits for those of the event loop.

The loop's own executor is everybody's: a program that fills it with work of its own would hold
every call up. Steps of milliseconds share a few threads; what takes as long as others like has
threads of its own, so that it never stands in the way of a step. Where the system has no thread
left, or the interpreter ends and begins none any more, the caller's thread does it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork

_STEPS: Final = "steps"
_WAITS: Final = "waits"
_MOST = {_STEPS: 16, _WAITS: 256}
P = ParamSpec("P")
T = TypeVar("T")

_lock = ProcessLock()
_pools: dict[str, ThreadPoolExecutor] = {}


def is_on_loop() -> bool:
    """Return whether this thread runs an event loop, which no file may block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def run_step(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what takes some milliseconds in a thread and return its result."""
    return await asyncio.wrap_future(submit_step(function, *args, **kwargs))


def submit_step(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
    """Begin what takes some milliseconds in a thread; it is done whether anybody waits or not."""
    return _submit(_STEPS, partial(function, *args, **kwargs))


def submit_wait(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
    """Begin what may take as long as others like; it is done whether anybody waits or not."""
    return _submit(_WAITS, partial(function, *args, **kwargs))


async def run_wait(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what may take as long as a network, a disk or an import likes, and return its result."""
    return await asyncio.wrap_future(submit_wait(function, *args, **kwargs))


def _submit(kind: str, call: Callable[[], T]) -> "Future[T]":
    done: Future[T] = Future()
    undone: list[Callable[[], T]] = [partial(copy_context().run, call)]
    try:
        _pool(kind).submit(_do_once, undone, done)
    except RuntimeError:
        # The pool has it in its queue nevertheless, for a thread that runs already.
        _do_once(undone, done)
    return done


def _do_once(undone: list[Callable[[], T]], done: "Future[T]") -> None:
    """Do what is to be done unless somebody else does it, or nobody wants it any more."""
    try:
        call = undone.pop()
    except IndexError:
        return
    try:
        if done.set_running_or_notify_cancel():
            done.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
        done.set_exception(error)
    finally:
        # The traceback of an error leads here, and from here to the error.
        del done, call


def _pool(kind: str) -> ThreadPoolExecutor:
    with _lock:
        if kind not in _pools:
            name = f"langchain_car_vllm.{kind}"
            _pools[kind] = ThreadPoolExecutor(_MOST[kind], thread_name_prefix=name)
        return _pools[kind]


reset_after_fork(_pools.clear)
