"""The simple engine of a server that somebody else runs: one request at a time.

By default it answers a second request with a failure, as a frame of the stream, and goes on with an
answer that was cut off (vllm-mlx 0.6.0). So the requests of this process wait for their turn, and
such a failure before any text is a refusal, to be repeated.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.transport.refusal import Refusal

_BUSY_STATUS = 500
_PAUSE = 0.05
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 2.0
_AFTERMATH_SECONDS = 60.0
_HINT = (
    "this server answers one request at a time: start it with "
    "VLLM_MLX_SIMPLE_ENGINE_LOCK_ADMISSION=wait, or with --continuous-batching"
)


class _Line:
    """The requests of this process to one address."""

    def __init__(self) -> None:
        self.lock = ProcessLock(reentrant=False)
        self.holder: object = None
        self.cut_at: float | None = None

    @contextmanager
    def held(self, me: object, *, is_held: bool) -> Iterator[None]:
        """Note who has the turn, and that an answer was cut off, be it by a timeout or the user."""
        self.holder = me if is_held else self.holder
        try:
            yield
        except (ServerFailedError, Refusal):
            raise
        except BaseException:
            self.cut_at = time.monotonic()
            raise
        finally:
            if is_held:
                self.holder = None
                self.lock.release()


_lines: dict[str, _Line] = {}
reset_after_fork(_lines.clear)


def _line_of(endpoint: Endpoint) -> _Line | None:
    if endpoint.managed or endpoint.engine != "simple":
        return None
    return _lines.setdefault(endpoint.base_url, _Line())


@contextmanager
def turn(endpoint: Endpoint, deadline: float | None) -> Iterator[None]:
    """Hold the turn for one request, where the endpoint needs turns.

    One that has its answer open in this thread goes first: it would wait for itself.
    """
    line = _line_of(endpoint)
    if line is None:
        yield
        return
    is_held = False
    if line.holder is not (me := threading.current_thread()):
        timeout = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        is_held = line.lock.acquire(timeout=timeout)
    with line.held(me, is_held=is_held):
        yield


@asynccontextmanager
async def aturn(endpoint: Endpoint, deadline: float | None) -> AsyncIterator[None]:
    """Do what `turn` does without blocking the event loop."""
    line = _line_of(endpoint)
    if line is None:
        yield
        return
    is_held = False
    if line.holder is not (me := asyncio.current_task()):
        while not (is_held := line.lock.acquire(blocking=False)):
            if deadline is not None and time.monotonic() > deadline:
                break
            await asyncio.sleep(_PAUSE)
    with line.held(me, is_held=is_held):
        yield


def note_cut(endpoint: Endpoint) -> None:
    """Note that an answer was cut off, which the engine goes on with for a while."""
    if (line := _line_of(endpoint)) is not None:
        line.cut_at = time.monotonic()


class BusyWaits:
    """Tells how long to wait before a request is repeated that the engine was too busy for.

    Args:
        endpoint: Who was busy.
        most: How often it is repeated, more often while the engine may be at what was cut off.
    """

    def __init__(self, endpoint: Endpoint, most: int) -> None:
        self._line = _line_of(endpoint)
        self._left = most
        self._pause = _FIRST_WAIT

    def wait(self, error: ServerFailedError, events: int) -> float:
        """Return the seconds to wait, or raise `error`, with the cure where it was busy."""
        if self._line is None or error.status != _BUSY_STATUS or events:
            raise error
        cut_at = self._line.cut_at
        is_aftermath = cut_at is not None and time.monotonic() - cut_at < _AFTERMATH_SECONDS
        if self._left <= 0 and not is_aftermath:
            error.hint = _HINT
            raise error
        self._left -= 1
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_WAIT)
        return pause
