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
from contextvars import ContextVar

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
        self.cut_at: float | None = None
        self.turns: list[_Turn] = []


class _Turn:
    """One request's turn; those that are made within it take turns among themselves."""

    def __init__(self, line: _Line) -> None:
        self.line = line
        self.taker = _current()
        self.lock = ProcessLock(reentrant=False)

    @property
    def is_held(self) -> bool:
        """Whether the request is under way."""
        return self in self.line.turns

    @contextmanager
    def held(self, taken: ProcessLock | None) -> Iterator[None]:
        """Give the turn up at the end, and note an answer that a timeout or the user cut off.

        Args:
            taken: The lock that was taken for it, None where there was no time left to wait for it.
        """
        _turns.set((*(turn for turn in _turns.get() if turn.is_held), self))
        self.line.turns.append(self)
        try:
            yield
        except (ServerFailedError, Refusal):
            raise
        except BaseException:
            self.line.cut_at = time.monotonic()
            raise
        finally:
            self.line.turns.remove(self)
            if taken is not None:
                taken.release()


_lines: dict[str, _Line] = {}
_turns: ContextVar[tuple[_Turn, ...]] = ContextVar("turns", default=())
"""Those within which a call is made."""
reset_after_fork(_lines.clear)


def _line_of(endpoint: Endpoint) -> _Line | None:
    if endpoint.managed or endpoint.engine != "simple":
        return None
    return _lines.setdefault(endpoint.base_url, _Line())


def _outer_turn(line: _Line) -> _Turn | None:
    """Return the turn of the request that this one is made within, which would wait for itself.

    A chain reads its model's stream in a context of its own, but in the thread of who reads it.
    """
    within, taker = _turns.get(), _current()
    outer = [turn for turn in tuple(line.turns) if turn in within or turn.taker is taker]
    return outer[-1] if outer else None


def _current() -> object:
    """Return the task that runs now, outside of tasks the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or threading.current_thread()


@contextmanager
def turn(endpoint: Endpoint, deadline: float | None) -> Iterator[None]:
    """Hold the turn for one request, where the endpoint needs turns.

    One that is made while its consumer's own answer is open goes before others.
    """
    line = _line_of(endpoint)
    if line is None:
        yield
        return
    lock = (_outer_turn(line) or line).lock
    timeout = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
    is_mine = lock.acquire(timeout=timeout)
    with _Turn(line).held(lock if is_mine else None):
        yield


@asynccontextmanager
async def aturn(endpoint: Endpoint, deadline: float | None) -> AsyncIterator[None]:
    """Do what `turn` does without blocking the event loop."""
    line = _line_of(endpoint)
    if line is None:
        yield
        return
    lock = (_outer_turn(line) or line).lock
    while not (is_mine := lock.acquire(blocking=False)):
        if deadline is not None and time.monotonic() > deadline:
            break
        await asyncio.sleep(_PAUSE)
    with _Turn(line).held(lock if is_mine else None):
        yield


def note_cut(endpoint: Endpoint) -> None:
    """Note that an answer was cut off, which the engine goes on with for a while."""
    if (line := _line_of(endpoint)) is not None:
        line.cut_at = time.monotonic()


class BusyWaits:
    """Tells how long to wait before a request is repeated that the engine was too busy for.

    Args:
        endpoint: Who was busy.
        most: How often it is repeated, more often while the engine may be at what was cut off, or
            is at the answer that this request is made within.
    """

    def __init__(self, endpoint: Endpoint, most: int) -> None:
        self._line = _line_of(endpoint)
        self._outer = _outer_turn(self._line) if self._line else None
        self._left = most
        self._pause = _FIRST_WAIT

    def wait(self, error: ServerFailedError, events: int) -> float:
        """Return the seconds to wait, or raise `error`, with the cure where it was busy."""
        if self._line is None or error.status != _BUSY_STATUS or events:
            raise error
        cut_at = self._line.cut_at
        is_aftermath = cut_at is not None and time.monotonic() - cut_at < _AFTERMATH_SECONDS
        is_within = self._outer is not None and self._outer.is_held
        if self._left <= 0 and not (is_aftermath or is_within):
            error.hint = _HINT
            raise error
        self._left -= 1
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_WAIT)
        return pause
