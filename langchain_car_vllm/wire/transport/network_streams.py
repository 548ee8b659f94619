"""What our connections do beyond httpcore's: one write for a request, in time, and joined chunks.

httpcore writes the head of a request and then its body: two system calls, two packets, and a server
that wakes up for a head it can do nothing with yet. Together they take a tenth off a warm call. And
httpcore's limits are for a single look at the network, while a body may be taken, and headers and a
chunk may come, byte by byte.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import httpcore2

from langchain_car_vllm.wire.transport.chunk_joiner import ChunkJoiner

_HEAD_END = b"\r\n\r\n"
_MOST_BYTES = 1 << 16
"""A longer body goes out by itself: copying it would cost more than a packet. A write has no more,
so that none goes on for long beyond its limit."""


class Sending:
    """A request that is being sent in this thread or task, as far as its connection knows of it.

    Args:
        deadline: Monotonic seconds beyond which a synchronous connection neither reads nor writes.

    Attributes:
        is_connected_anew: Whether a connection was made for it.
        is_answered: Whether a byte of its answer has come.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.is_connected_anew = False
        self.is_answered = False


_sending: ContextVar[Sending | None] = ContextVar("_sending", default=None)


@contextmanager
def sending(deadline: float | None = None) -> Iterator[Sending]:
    """Have the connections that are used inside of the block know what is sent."""
    current = Sending(deadline)
    token = _sending.set(current)
    try:
        yield current
    finally:
        with suppress(ValueError):  # a task of a closed loop is collected in another context
            _sending.reset(token)


def note_connected() -> None:
    """Note that a connection is made for what is being sent."""
    if (current := _sending.get()) is not None:
        current.is_connected_anew = True


def _note_answered() -> None:
    if (current := _sending.get()) is not None:
        current.is_answered = True


class _Head:
    """Holds the head of a request back until its body follows, or its answer is waited for."""

    def __init__(self) -> None:
        self._held = b""
        self._is_first = True

    def take(self, buffer: bytes) -> list[bytes]:
        """Return what is to be written now."""
        is_head, self._is_first = self._is_first and buffer.endswith(_HEAD_END), False
        if is_head:
            self._held = buffer
            return []
        held, self._held = self._held, b""
        return [held + buffer] if len(buffer) <= _MOST_BYTES else [held, buffer]

    def end(self) -> bytes:
        """Return what is still held back."""
        held, self._held, self._is_first = self._held, b"", True
        return held


class Stream(httpcore2.NetworkStream):
    """A connection.

    Attributes:
        end: Monotonic seconds by which the answer to what was written last has to be read.
    """

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self._head = _Head()
        self._joiner = ChunkJoiner()
        self.end: float | None = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write a part of a request, or keep it until the next one.

        Raises:
            httpcore2.TimeoutException: The time ran out.
        """
        self._joiner, self.end = ChunkJoiner(), None
        until = _end_of(timeout, None)
        for part in self._head.take(buffer):
            for at in range(0, len(part), _MOST_BYTES):
                self._stream.write(part[at : at + _MOST_BYTES], _seconds_until(until))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what has come of an answer.

        Raises:
            httpcore2.TimeoutException: The time ran out.
        """
        if held := self._head.end():
            self._stream.write(held, timeout)
        until = _end_of(timeout, self.end)
        while True:
            data = self._stream.read(max_bytes, _seconds_until(until))
            if data:
                _note_answered()
            if (joined := self._joiner.feed(data)) or not data:
                return joined

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "Stream":
        """Secure the connection."""
        return Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of the connection."""
        return self._stream.get_extra_info(info)


class AsyncStream(httpcore2.AsyncNetworkStream):
    """The same for an event loop."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head = _Head()
        self._joiner = ChunkJoiner()
        self.end: float | None = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Do what `Stream.write` does."""
        self._joiner, self.end = ChunkJoiner(), None
        for part in self._head.take(buffer):
            await self._stream.write(part, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Do what `Stream.read` does."""
        if held := self._head.end():
            await self._stream.write(held, timeout)
        until = _end_of(timeout, self.end)
        while True:
            data = await self._stream.read(max_bytes, _seconds_until(until))
            if data:
                _note_answered()
            if (joined := self._joiner.feed(data)) or not data:
                return joined

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> "AsyncStream":
        """Secure the connection."""
        async with closed_on_failure(self._stream):
            return AsyncStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of the connection."""
        return self._stream.get_extra_info(info)


@asynccontextmanager
async def closed_on_failure(stream: httpcore2.AsyncNetworkStream) -> AsyncIterator[None]:
    """Close a new connection where the block fails, or whoever makes it has been cancelled.

    A scope of anyio tells that at the next step, where httpcore would keep the connection for
    nobody.
    """
    try:
        yield
        await asyncio.sleep(0)
    except BaseException:
        await stream.aclose()
        raise


def _end_of(timeout: float | None, end: float | None) -> float | None:
    """Return the monotonic seconds by which a read or a write is over, None for no limit."""
    current = _sending.get()
    deadline = end if current is None or current.deadline is None else current.deadline
    if timeout is None:
        return deadline
    until = time.monotonic() + timeout
    return until if deadline is None else min(until, deadline)


def _seconds_until(end: float | None) -> float | None:
    if end is None:
        return None
    if (left := end - time.monotonic()) <= 0:
        raise httpcore2.TimeoutException("the time ran out")
    return left
