"""Async generators that end with the one that uses them, and with nobody else.

An event loop that shuts down closes all generators that it has met, at once and in any order. One
that closes others within itself finds them being closed already then, and fails. What it closes in
a task of its own it cancels as it ends, before that has begun or while it waits: the collector then
does the rest within a later, unrelated call.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from sys import get_asyncgen_hooks, set_asyncgen_hooks
from typing import Any, Generic, TypeVar

_SHUTDOWN_SECONDS = 5.0
T = TypeVar("T")


class Owned(AsyncIterator[T]):
    """Yields the parts, and closes them once nobody has it any more.

    The loop meets neither it nor the parts nor what begins within them. Who ends the loop calls
    `close_all` before.

    Args:
        parts: What is yielded.
    """

    def __init__(self, parts: AsyncGenerator[T, None]) -> None:
        self._parts = parts
        self._open: _Open | None = None

    async def __anext__(self) -> T:
        """Return the next part."""
        if self._open is None:
            self._open = _Open(self._parts)
        try:
            return await _Unmet(self._parts.__anext__)
        except BaseException:
            self._open.forget()
            raise

    async def aclose(self) -> None:
        """Close the parts."""
        if self._open is not None:
            await asyncio.shield(self._open.close())

    def __del__(self) -> None:
        """Have the loop close the parts; the collector may run in any thread and any call."""
        if (left := getattr(self, "_open", None)) is not None and left.is_open:
            with suppress(RuntimeError):  # the loop is closed
                left.loop.call_soon_threadsafe(left.close)


class _Open:
    """Parts that were begun, and are not closed yet; it outlives who uses them.

    Attributes:
        loop: Where they were begun.
        is_open: Whether there is anything to close.
    """

    def __init__(self, parts: AsyncGenerator[Any, None]) -> None:
        self._parts = parts
        self._closing: asyncio.Task[None] | None = None
        self._has_begun = False
        self.is_open = True
        self.loop = asyncio.get_running_loop()
        for closed in [known for known in list(_known) if known.is_closed()]:
            _known.pop(closed, None)
        _known.setdefault(self.loop, set()).add(self)

    def forget(self) -> None:
        """Note that there is nothing to close any more."""
        self.is_open = False
        _known.get(self.loop, set()).discard(self)

    def close(self) -> "asyncio.Task[None]":
        """Begin to close the parts in a task of their own, on their loop."""
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())
            self._closing.add_done_callback(self._end)
        return self._closing

    async def _close(self) -> None:
        self._has_begun = True
        await _Unmet(self._parts.aclose)

    def _end(self, _: "asyncio.Task[None]") -> None:
        if self._has_begun:
            self.forget()
        elif not self.loop.is_closed():  # it was cancelled before its first step
            self._closing = None
            self.close()


_known: dict[asyncio.AbstractEventLoop, set[_Open]] = {}


async def close_all() -> None:
    """Close what is still open on the running loop, and wait for what is being closed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_SHUTDOWN_SECONDS):
            while left := list(_known.get(asyncio.get_running_loop(), ())):
                await asyncio.wait([each.close() for each in left])
    _known.pop(asyncio.get_running_loop(), None)


class _Unmet(Generic[T]):
    """Awaits a step in which no generator is made known to the loop."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[], Awaitable[T]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, Any, T]:
        step: Generator[Any, Any, T] | None = None
        error: BaseException | None = None
        while True:
            meet = get_asyncgen_hooks().firstiter
            set_asyncgen_hooks(None)
            try:
                if step is None:
                    step = self._begin().__await__()
                awaited = step.send(None) if error is None else step.throw(error)
            except StopIteration as end:
                found: T = end.value
                return found
            finally:
                set_asyncgen_hooks(meet)
                error = None  # its traceback leads here, and from here to the error
            try:
                yield awaited
            except GeneratorExit:  # nobody waits any more, and perhaps there is no loop to wait on
                raise
            except BaseException as thrown:  # noqa: BLE001 - it is the step's
                error = thrown
