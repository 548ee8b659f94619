"""What ends with an event loop: one that is closed never goes on with what waits on it.

Who waits may be kept all the same, by the program or by the connection that it waits for. What a
loop of any kind drops as it is closed is its timers, and what they hold.
"""

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context

_NEVER = 1e9


class _Timer:
    """Held by nobody but the loop."""

    def __call__(self) -> None:
        """Do nothing: its time does not come."""


@contextmanager
def ended_with_loop(end: Callable[[], object]) -> Iterator[None]:
    """Call `end` where the running loop is closed before the block is left.

    Args:
        end: Called in the thread that closes the loop. What it leads to is kept until then, so it
            must not lead to the loop.
    """
    timer = _Timer()
    left_behind = weakref.finalize(timer, end)
    left_behind.atexit = False
    loop = asyncio.get_running_loop()
    handle = weakref.ref(loop.call_later(_NEVER, timer, context=Context()))
    del timer, loop
    try:
        yield
    finally:
        left_behind.detach()
        if (waiting := handle()) is not None:
            waiting.cancel()
