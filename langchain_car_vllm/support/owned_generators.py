"""Async generators that end with the one that uses them, and with nobody else.

An event loop that shuts down closes all generators that it has met, at once and in any order. One
that closes others within itself finds them being closed already then, and fails.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from sys import get_asyncgen_hooks, set_asyncgen_hooks
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def owned(parts: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield the parts, and close them; the loop meets neither them nor what begins within them."""
    try:
        while True:
            try:
                part = await _Unmet(parts.__anext__)
            except StopAsyncIteration:
                return
            yield part
    finally:
        await _Unmet(parts.aclose)


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
