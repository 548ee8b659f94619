"""What the other side of a connection does is bounded: in time, in bytes and in where it leads."""

import asyncio
import socket
import time

import pytest
from unit.wire.calling import WAYS
from unit.wire.raw_server import raw, read_request, whole

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.wire import whole_answers
from langchain_car_vllm.wire.answer import reader
from langchain_car_vllm.wire.errors import (
    AnswerError,
    RequestTimeoutError,
    ServerFailedError,
)


def drip(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    while True:
        connection.sendall(b"a")
        time.sleep(0.02)


def flood(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    while True:
        connection.sendall(b"a" * (1 << 16))


OPEN = b"\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n100000000\r\n"


CHUNK = OPEN.replace(b"100000000", b"8000")


STREAM = OPEN.replace(b"application/json", b"text/event-stream")


FAULTS = {
    "silence": lambda c: time.sleep(60),
    "header-drip": lambda c: drip(c, b"HTTP/1.1 200 OK\r\nx: "),
    "status-drip": lambda c: drip(c, b"HTTP/1.1 2"),
    "body-drip": lambda c: drip(c, b"HTTP/1.1 200 OK" + OPEN),
    "chunk-drip": lambda c: drip(c, b"HTTP/1.1 200 OK" + CHUNK),
    "error-drip": lambda c: drip(c, b"HTTP/1.1 500 Oh no" + OPEN),
    "error-flood": lambda c: flood(c, b"HTTP/1.1 500 Oh no" + OPEN),
    "refusal-flood": lambda c: flood(c, b"HTTP/1.1 400 Bad" + OPEN),
    "answer-flood": lambda c: flood(c, b"HTTP/1.1 200 OK" + OPEN),
    "stream-flood": lambda c: flood(c, b"HTTP/1.1 200 OK" + STREAM + b"data: "),
    "header-flood": lambda c: flood(c, b"HTTP/1.1 200 OK\r\nx: "),
    "continue": lambda c: [c.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 99) for _ in iter(int, 1)],
    "redirect": lambda c: c.sendall(whole(b"", "307 Moved", "location: http://127.0.0.1:9/\r\n")),
    "nan": lambda c: c.sendall(whole(b"{}", "503 Busy", "retry-after: nan\r\n")),
    "infinity": lambda c: c.sendall(whole(b"{}", "429 Busy", "retry-after: inf\r\n")),
    "garbage": lambda c: c.sendall(b"\0\1\2 what\r\n\r\n"),
    "deep": lambda c: c.sendall(whole(b"[" * 100_000, "500 Oh")),
    "reset": lambda c: c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"),
}


USES = {
    "invoke": lambda f: ChatVllmMlx(**f, max_retries=1).invoke("hi"),
    "ainvoke": lambda f: asyncio.run(ChatVllmMlx(**f, max_retries=1).ainvoke("hi")),
    "stream": lambda f: list(ChatVllmMlx(**f, max_retries=1).stream("hi")),
    "embed": lambda f: VllmMlxEmbeddings(**f).embed_query("hi"),
    "aembed": lambda f: asyncio.run(VllmMlxEmbeddings(**f).aembed_query("hi")),
    "rerank": lambda f: VllmMlxReranker(**f).rerank(["hi"], "hi"),
    "arerank": lambda f: asyncio.run(VllmMlxReranker(**f).arerank(["hi"], "hi")),
}


@pytest.mark.parametrize("use", USES)
def test_timeout_ends_every_call(use: str):
    """Whatever the other side does: the error is typed, in time, and of bounded size."""
    for name, fault in FAULTS.items():

        def serve(connection: socket.socket, number: int, fault=fault) -> None:
            if read_request(connection):
                fault(connection)

        with raw(serve) as server:
            fields = {"model": "m", "base_url": server.base_url, "timeout": 0.3}
            began = time.monotonic()
            with pytest.raises(AnswerError) as caught:
                USES[use](fields)
            assert time.monotonic() - began < 20, name
            assert len(str(caught.value)) < 3000, name
            if name.endswith("drip") or name in ("silence", "continue"):
                assert isinstance(caught.value, RequestTimeoutError | ServerFailedError), name


@pytest.mark.parametrize("use", ["invoke", "ainvoke", "embed", "arerank"])
def test_timeout_ends_an_answer_that_falls_silent_in_its_midst(use: str):
    """What came just in time does not let the rest have as much time once more."""

    def serve(connection: socket.socket, number: int) -> None:
        if not read_request(connection).startswith(b"POST"):
            return
        connection.sendall(whole(b" " * 1000)[:-1000])
        silent_at = time.monotonic() + 2.7
        while time.monotonic() < silent_at:
            connection.sendall(b" ")
            time.sleep(0.05)
        connection.recv(1)

    with raw(serve) as server:
        fields = {"model": "m", "base_url": server.base_url, "timeout": 3.0}
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            USES[use](fields)
        assert time.monotonic() - began < 5.2


@pytest.mark.parametrize("way", WAYS)
def test_timeout_ends_a_request_that_is_read_slowly(way: str):
    """A single write always goes on: its end is what the limit is for."""

    def serve(connection: socket.socket, number: int) -> None:
        while connection.recv(1 << 15):
            time.sleep(0.01)

    with raw(serve) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url, timeout=1.0)
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            WAYS[way](model, "x" * (1 << 26))
    assert time.monotonic() - began < 12


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", [name for name in FAULTS if name.endswith("flood")])
def test_no_flood_fills_the_memory(monkeypatch: pytest.MonkeyPatch, name: str, use: str):
    """Without any `timeout`, what never ends is cut off by its bytes."""
    monkeypatch.setattr(reader, "_LONGEST_EVENT", 1 << 20)
    monkeypatch.setattr(reader, "_LONGEST_WHOLE", 1 << 20)
    monkeypatch.setattr(whole_answers, "_MOST_BYTES", 1 << 20)

    def serve(connection: socket.socket, number: int) -> None:
        if read_request(connection):
            FAULTS[name](connection)

    with raw(serve) as server, pytest.raises(AnswerError) as caught:
        USES[use]({"model": "m", "base_url": server.base_url})
    assert len(str(caught.value)) < 3000


def test_an_endless_stream_of_events_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    """However short each of them is."""
    monkeypatch.setattr(reader, "_LONGEST_STREAM", 1 << 20)
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'

    def serve(connection: socket.socket, number: int) -> None:
        if read_request(connection):
            connection.sendall(b"HTTP/1.1 200 OK" + STREAM)
            for _ in iter(int, 1):
                connection.sendall(event * 100)

    with raw(serve) as server, pytest.raises(ServerFailedError, match="longer than any"):
        list(ChatVllmMlx(model="m", base_url=server.base_url).stream("hi"))


@pytest.mark.parametrize("use", USES)
def test_a_redirect_takes_nothing_along(use: str):
    """The prompt and the headers go to the address that the user wrote, and nowhere else."""
    heard = []

    def listen(connection: socket.socket, number: int) -> None:
        heard.append(connection.recv(65536))

    with raw(listen) as other:

        def serve(connection: socket.socket, number: int) -> None:
            if read_request(connection):
                head = f"location: {other.base_url}/chat/completions\r\n"
                connection.sendall(whole(b"", "307 Temporary Redirect", head))

        with raw(serve) as server:
            fields = {"model": "m", "base_url": server.base_url, "default_headers": {"x": "secret"}}
            with pytest.raises(AnswerError, match="redirect"):
                USES[use](fields)
    assert heard == []
