"""What the connections of our clients do beyond httpcore's: one write for a request, timely reads.

httpcore writes the head of a request and then its body: two system calls, two packets, and a server
that wakes up for a head it can do nothing with yet. Together they take a tenth off a warm call. And
httpcore's limits are for a single read, while an answer's headers may come byte by byte.

A stream that is there already becomes one of these by its class: functions put in the place of its
own would lead back to it, and nobody but Python's collector frees such a circle.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import httpcore2

from langchain_car_vllm.wire.transport.chunk_joiner import ChunkJoiner

_HEAD_END = b"\r\n\r\n"
_MOST_BYTES = 1 << 16
"""A longer body goes out by itself: copying it would cost more than a packet."""
_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)


@contextmanager
def reads_until(deadline: float | None) -> Iterator[None]:
    """Let no read of a synchronous client last beyond a moment."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


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


class _OurStream(httpcore2.NetworkStream):
    _head: _Head
    _joiner: ChunkJoiner

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._joiner = ChunkJoiner()
        for part in self._head.take(buffer):
            super().write(part, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if held := self._head.end():
            super().write(held, timeout)
        while True:
            data = super().read(max_bytes, _before_deadline(timeout))
            if (joined := self._joiner.feed(data)) or not data:
                return joined


class _OurAsyncStream(httpcore2.AsyncNetworkStream):
    _head: _Head
    _joiner: ChunkJoiner

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._joiner = ChunkJoiner()
        for part in self._head.take(buffer):
            await super().write(part, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if held := self._head.end():
            await super().write(held, timeout)
        while True:
            data = await super().read(max_bytes, timeout)
            if (joined := self._joiner.feed(data)) or not data:
                return joined


def _before_deadline(timeout: float | None) -> float | None:
    deadline = _deadline.get()
    if deadline is None:
        return timeout
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the time ran out")
    return left if timeout is None else min(left, timeout)


def adopt(stream: Any) -> None:
    """Have a network stream of httpcore, of either kind, behave as ours do."""
    stream.__class__ = _class_beyond(stream.__class__)
    stream._head = _Head()  # noqa: SLF001 - it is one of ours now
    stream._joiner = ChunkJoiner()  # noqa: SLF001


@lru_cache
def _class_beyond(kind: Any) -> type:
    is_sync = issubclass(kind, httpcore2.NetworkStream)
    return type(kind.__name__, (_OurStream if is_sync else _OurAsyncStream, kind), {})
