"""The chunks of one read become one, and who reads them can tell by the time it takes alone."""

from itertools import pairwise

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_car_vllm.wire.transport.chunk_joiner import ChunkJoiner

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def joined(reads: list[bytes]) -> list[bytes]:
    """Return what each read brings until the connection ends, but for those that bring nothing."""
    joiner = ChunkJoiner()
    found = [joiner.feed(data) for data in [*reads, b"", b""]]
    assert found[-1] == b""
    return [data for data in found if data]


def read(reads: list[bytes]) -> tuple[bytes, str]:
    """Return the body as h11 reads it, and how it ends: the last event, or the error."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    body = b""
    for data in [*reads, b""]:
        connection.receive_data(data)
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                return body, str(error)
            if event is h11.NEED_DATA or event is h11.PAUSED:
                break
            if isinstance(event, h11.Data):
                body += event.data
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return body, repr(event)
    return body, "open"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(marks)]


CHUNKS = st.one_of(
    st.binary(min_size=1, max_size=40).map(chunk),
    st.binary(min_size=1, max_size=9).map(lambda d: b"00%X;a=b\r\n%b\r\n" % (len(d), d)),
    st.just(chunk(b"x" * 70_000)),
    st.just(chunk(b"\r\n0\r\n\r\n")),
)
ENDS = st.sampled_from(
    [
        END,
        b"",
        b"0\r\nx-trailer: 1\r\n\r\n",
        b"00\r\n\r\n",
        b"5\r\nab",
        b"zz\r\n",
        b"3\r\nabcdef\r\n",
        b"1\r\na\r",
        b"1\r\nax",
        b"-1\r\n\r\n",
        b"\r\n",
        b"1" * 30,
    ]
)
HEADS = st.sampled_from(
    [
        HEAD,
        HEAD.replace(b"chunked", b"CHUNKED").replace(b": ", b":"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
    ]
)


@settings(max_examples=300, deadline=None)
@given(HEADS, st.lists(CHUNKS, max_size=6), ENDS, st.lists(st.integers(0, 10**6), max_size=9))
@example(HEAD, [], b"1\r\na\r", [])
def test_what_is_read_is_the_same(head: bytes, chunks: list[bytes], end: bytes, places: list[int]):
    """The same body and the same end or error, wherever reads cut, whole or broken."""
    reads = cut(head + b"".join(chunks) + end, places)

    assert read(joined(reads)) == read(reads)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(0, 10**6))
def test_a_whole_chunk_never_waits(bodies: list[bytes], place: int):
    """What has come whole is handed on at once, however much of the next one came along."""
    chunks = [chunk(body) for body in bodies]
    sent = HEAD + b"".join(chunks)
    first = sent[: len(HEAD) + place % (len(sent) - len(HEAD) + 1)]
    whole, left = b"", len(first) - len(HEAD)
    for body, encoded in zip(bodies, chunks, strict=True):
        left -= len(encoded)
        whole += body if left >= 0 else b""

    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(ChunkJoiner().feed(first))
    assert isinstance(connection.next_event(), h11.Response)
    event = connection.next_event()
    assert (event.data if isinstance(event, h11.Data) else b"") == whole


def test_the_chunks_of_one_read_are_one():
    """Head, tokens and end that come together are four parts: the head, one chunk, the end."""
    tokens = [b"data: %d\n\n" % number for number in range(30)]

    assert joined([HEAD + b"".join(map(chunk, tokens)) + END]) == [
        HEAD + chunk(b"".join(tokens)) + END
    ]


@pytest.mark.parametrize("size", [1 << 16, 1 << 20])
def test_a_long_chunk_is_not_held(size: int):
    """A chunk that is long goes on as it comes: its parts take no memory here."""
    reads = [HEAD, b"%x\r\n" % size, *[b"x" * 4096] * (size // 4096)]

    assert sum(map(len, joined(reads))) >= sum(map(len, reads)) - (1 << 16) - 8
