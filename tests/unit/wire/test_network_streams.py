"""Our connections: one write for the head of a request and its body, whatever httpcore does."""

import asyncio
from typing import Any

import httpcore2
import pytest

from langchain_car_vllm.wire.transport.network_streams import adopt, reads_until

HEAD = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n"
LARGE = b"x" * (1 << 17)


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
    """The head waits for the body, never beyond the look at the answer; nothing is lost."""
    steps, expected = CASES[case]
    stream = Recorder()
    adopt(stream)
    for step in steps:
        if step is None:
            stream.read(1)
        else:
            stream.write(step)
    assert stream.noted == expected


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_together_on_a_loop(case: str):
    """The same on an event loop."""
    steps, expected = CASES[case]
    stream = AsyncRecorder()
    adopt(stream)

    async def use() -> None:
        for step in steps:
            if step is None:
                await stream.read(1)
            else:
                await stream.write(step)

    asyncio.run(use())
    assert stream.noted == expected


def test_no_read_lasts_beyond_the_deadline():
    """A read that begins after it times out at once, and the head is out by then."""
    stream = Recorder()
    adopt(stream)
    stream.write(HEAD)
    with reads_until(0.0), pytest.raises(httpcore2.ReadTimeout):
        stream.read(1)
    assert stream.noted == [HEAD]
