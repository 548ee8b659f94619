"""Our connections: one write for the head of a request and its body, whatever httpcore does."""

import asyncio
import time
from itertools import chain
from typing import Any

import httpcore2
import pytest

from langchain_car_vllm.wire.transport.network_streams import AsyncStream, Stream, sending
from langchain_car_vllm.wire.transport.send import open_stream

HEAD = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n"
PIECE = b"x" * (1 << 16)
LARGE = PIECE * 2


class Recorder(httpcore2.NetworkStream):
    """Notes what is written and read."""

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.noted.append(buffer)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.noted.append("read")
        return b""


class AsyncRecorder(httpcore2.AsyncNetworkStream):
    """The same for an event loop."""

    def __init__(self) -> None:
        self.noted: list[Any] = []

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self.noted.append(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        self.noted.append("read")
        return b""


CASES = {
    "a body": ([HEAD, b"{}", None], [HEAD + b"{}", "read"]),
    "no body": ([HEAD, None], [HEAD, "read"]),
    "an empty end": ([HEAD, b"", None], [HEAD, "read"]),
    "a long body": ([HEAD, LARGE, None], [HEAD, LARGE, "read"]),
    "two requests": ([HEAD, b"{}", None, HEAD, b"{}", None], [HEAD + b"{}", "read"] * 2),
    "a body that ends as a head does": ([HEAD, HEAD, None], [HEAD + HEAD, "read"]),
    "no head": ([b"\x16\x03", None], [b"\x16\x03", "read"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_together(case: str):
    """The head waits for the body, never beyond the look at the answer; nothing is lost.

    What is long goes out in pieces, so that a deadline is looked at between them.
    """
    steps, expected = CASES[case]
    recorder = Recorder()
    stream = Stream(recorder)
    for step in steps:
        if step is None:
            stream.read(1)
        else:
            stream.write(step)
    pieces = [[PIECE, PIECE] if part == LARGE else [part] for part in expected]
    assert recorder.noted == [*chain(*pieces)]


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_together_on_a_loop(case: str):
    """The same on an event loop."""
    steps, expected = CASES[case]
    recorder = AsyncRecorder()
    stream = AsyncStream(recorder)

    async def use() -> None:
        for step in steps:
            if step is None:
                await stream.read(1)
            else:
                await stream.write(step)

    asyncio.run(use())
    assert recorder.noted == expected


def test_no_read_lasts_beyond_the_deadline():
    """A read that begins after it times out at once, and the head is out by then."""
    recorder = Recorder()
    stream = Stream(recorder)
    stream.write(HEAD)
    with sending(0.0), pytest.raises(httpcore2.TimeoutException):
        stream.read(1)
    assert recorder.noted == [HEAD]


ANSWER = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
READS = [ANSWER + b"2\r\nab\r\n2\r", b"\n", b"cd\r\n1\r\ne\r\n0\r\n\r\n"]
JOINED = [ANSWER + b"2\r\nab\r\n", b"3\r\ncde\r\n0\r\n\r\n"]


class Scripted(Recorder):
    """Reads what it was given."""

    def __init__(self, reads: list[bytes]) -> None:
        super().__init__()
        self.reads = [*reads]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        super().read(max_bytes, timeout)
        return self.reads.pop(0) if self.reads else b""


class AsyncScripted(AsyncRecorder):
    """The same for an event loop."""

    def __init__(self, reads: list[bytes]) -> None:
        super().__init__()
        self.reads = [*reads]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        await super().read(max_bytes, timeout)
        return self.reads.pop(0) if self.reads else b""


def test_chunks_are_joined_in_every_answer_of_a_connection():
    """A read waits for a whole chunk and brings all that came; each request begins anew."""
    stream = Stream(Scripted(READS + READS))
    for _ in range(2):
        stream.write(HEAD)
        assert [stream.read(1), stream.read(1)] == JOINED
    assert stream.read(1) == b""


def test_chunks_are_joined_on_a_loop():
    """The same on an event loop."""
    stream = AsyncStream(AsyncScripted(READS + READS))

    async def use() -> None:
        for _ in range(2):
            await stream.write(HEAD)
            assert [await stream.read(1), await stream.read(1)] == JOINED
        assert await stream.read(1) == b""

    asyncio.run(use())


def test_a_chunk_that_trickles_in_ends_at_the_deadline():
    """The reads that wait for the rest of a chunk share the time that is left."""
    stream = Stream(Scripted([ANSWER + b"ffff\r\n", *[b"x"] * 0xFFFF]))
    stream.write(HEAD)
    stream.read(1)
    with sending(time.monotonic() + 0.02), pytest.raises(httpcore2.TimeoutException):
        stream.read(1)


class OtherRelease:
    """Connections of a release of httpcore that keeps its state elsewhere."""

    is_closed = False

    def handle_request(self, _: httpcore2.Request) -> httpcore2.Response:
        headers, own = [(b"content-type", b"application/json")], {"network_stream": self}
        return httpcore2.Response(200, headers=headers, content=b"{}", extensions=own)

    def close(self) -> None:
        self.is_closed = True


def test_a_connection_that_does_not_tell_what_follows_is_not_used_again():
    """The answer is had all the same."""
    pool: Any = OtherRelease()
    with open_stream(pool, lambda: httpcore2.Request("POST", "http://127.0.0.1:9/v1")) as body:
        assert b"".join(body) == b"{}"
    assert pool.is_closed
