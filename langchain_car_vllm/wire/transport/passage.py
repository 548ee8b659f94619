"""A request's passage through the gate of its server: in before it is sent, out at its end."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from weakref import ref

from langchain_car_vllm.gate import Gate
from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.support.process_state import ProcessLock
from langchain_car_vllm.support.threads import run_step, submit_step
from langchain_car_vllm.wire.errors import AnswerError, ConnectionFailedError, RequestTimeoutError
from langchain_car_vllm.wire.transport.refusal import Refusal
from langchain_car_vllm.wire.transport.timeouts import Clock

_UNKNOWN = (ConnectionFailedError, RequestTimeoutError)
"""What leaves open whether the server still works on the request."""


class Passage:
    """One request inside the gate.

    Attributes:
        is_over: Whether the server is done with the request.
    """

    def __init__(self, gate: Gate, stopwatch: Stopwatch) -> None:
        self._gate = gate
        self._stopwatch = stopwatch
        self._has_begun = False
        self.is_over = False

    def note(self, events: int) -> None:
        """Note how much of the answer has come: its first sign lets the next request be read."""
        self._gate.parts = events
        if events and not self._has_begun:
            self._has_begun = True
            self._stopwatch.note_first_token()
            self._begin()

    def _begin(self) -> None:
        self._gate.begin()


class _AsyncPassage(Passage):
    """The same on an event loop, which must not wait for a disk: threads see to the gate."""

    _beginning: "Future[None] | None" = None

    def _begin(self) -> None:
        if self._gate.awaits_beginning:
            self._beginning = submit_step(self._gate.begin)

    def leave(self) -> "Future[None]":
        """Begin to leave the gate; that is done whether anybody waits for it or not."""
        return submit_step(self._leave)

    def _leave(self) -> None:
        if self._beginning is not None:
            self._beginning.result()
        self._gate.leave(is_over=self.is_over)


@contextmanager
def enter_gate(gate: Gate, tokens: int, clock: Clock, *, arrives_late: bool) -> Iterator[Passage]:
    """Wait until the request may be sent, and leave at the end of the block.

    Args:
        gate: Where to wait.
        tokens: Of the prompt and the answer.
        clock: The wait does not count.
        arrives_late: Whether nothing shows when the answer began.
    """
    passage = Passage(gate, clock.stopwatch)
    try:
        began = time.monotonic()
        while not gate.try_enter(tokens, arrives_late=arrives_late):
            _sleep(gate)
        queued = time.monotonic() - began
        clock.leave_out(queued)
        clock.stopwatch.note_sent(queued, arrives_late=arrives_late)
        yield passage
    except (Refusal, AnswerError) as error:
        passage.is_over = not isinstance(error, _UNKNOWN)
        raise
    finally:
        gate.leave(is_over=passage.is_over)


@asynccontextmanager
async def aenter_gate(
    gate: Gate, tokens: int, clock: Clock, *, arrives_late: bool
) -> AsyncIterator[Passage]:
    """Do what `enter_gate` does without blocking the event loop."""
    passage = _AsyncPassage(gate, clock.stopwatch)
    is_closed = False
    try:
        began = time.monotonic()
        while not await _try_enter(gate, tokens, arrives_late=arrives_late):
            await _asleep(gate)
        queued = time.monotonic() - began
        clock.leave_out(queued)
        clock.stopwatch.note_sent(queued, arrives_late=arrives_late)
        yield passage
    except (Refusal, AnswerError) as error:
        passage.is_over = not isinstance(error, _UNKNOWN)
        raise
    except GeneratorExit:  # nobody may wait any more, and perhaps there is no loop to wait on
        is_closed = True
        raise
    finally:
        if not gate.is_open:
            left = passage.leave()
            if not is_closed:
                await asyncio.shield(asyncio.wrap_future(left))


def _sleep(gate: Gate) -> None:
    """Wait until it is worth while to try again."""
    awake = ProcessLock(reentrant=False)
    awake.acquire()
    awake.acquire(timeout=gate.pause(awake.release))


async def _asleep(gate: Gate) -> None:
    """Do the same without blocking the event loop."""
    awake = asyncio.Event()
    with suppress(TimeoutError):
        async with asyncio.timeout(gate.pause(_Alarm(awake))):
            await awake.wait()


class _Alarm:
    """Sets an event of the running loop from any thread; it does not keep the loop."""

    def __init__(self, awake: asyncio.Event) -> None:
        self._awake = ref(awake)
        self._loop = ref(asyncio.get_running_loop())

    def __call__(self) -> None:
        awake, loop = self._awake(), self._loop()
        if awake is not None and loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(awake.set)


async def _try_enter(gate: Gate, tokens: int, *, arrives_late: bool) -> bool:
    if gate.is_open:
        return True
    return await run_step(gate.try_enter, tokens, arrives_late=arrives_late)
