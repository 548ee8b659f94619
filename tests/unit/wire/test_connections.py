"""Connections: reused only where they live, repeated only where nothing was read, and bounded."""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from fakes.reply import Reply
from langchain_core.messages import HumanMessage
from unit.wire.calling import WAYS

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.wire import whole_answers
from langchain_car_vllm.wire.answer import reader
from langchain_car_vllm.wire.errors import (
    AnswerError,
    ConnectionFailedError,
    RequestTimeoutError,
    ServerFailedError,
)
from langchain_car_vllm.wire.transport.connection_pools import most_connections

ANSWER = json.dumps(
    {
        "id": "1",
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()


def whole(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class RawServer:
    """Answers connections with code of the test's own.

    Args:
        serve: Gets each connection with its number, and the request that was read from it.
    """

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(
                target=self._run, args=(connection, self.connections), daemon=True
            )
            thread.start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                self._serve(connection, number)
            except OSError:
                return

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def raw(serve: Callable[[socket.socket, int], None]) -> Iterator[RawServer]:
    """Run a `RawServer`."""
    server = RawServer(serve)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> bytes:
    """Return one request, empty where the client has left."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65536)):
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += connection.recv(65536)
    return head


def is_chat(request: bytes) -> bool:
    return b"/chat/completions" in request


def caller(model: ChatVllmMlx, way: str) -> Iterator[Callable[[], object]]:
    """Yield a function that asks once, in one event loop where it is asynchronous."""
    if way == "sync":
        yield partial(model.invoke, "hi")
        return
    with asyncio.Runner() as runner:
        yield lambda: runner.run(model.ainvoke("hi"))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_request_after_a_failure_works(serve, way: str):
    """The server closes the connection of a failure soon after, without saying so."""
    fails = iter([True, False] * 50)
    model, dialect = serve(
        lambda _: Reply(status=500, detail="broken") if next(fails) else Reply(text="yes")
    )
    for ask in caller(model, way):
        for _ in range(50):
            with pytest.raises(ServerFailedError):
                ask()
            assert ask().text == "yes"
    assert len(dialect.requests) == 100


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_kept_connection_that_ends_without_a_byte_is_repeated(way: str):
    """The server closed it in the instant in which it was used again."""
    chats = []

    def serve(connection: socket.socket, number: int) -> None:
        for place in range(2):
            request = read_request(connection)
            if not is_chat(request):
                connection.sendall(whole(b"{}", "404 Not Found"))
                return
            chats.append((number, place))
            if place == 0:
                connection.sendall(whole(ANSWER))

    with raw(serve) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        for ask in caller(model, way):
            assert [ask().text for _ in range(3)] == ["yes"] * 3
    first, second, third = (number for number, place in chats if place == 0)
    assert [number for number, place in chats if place == 1] == [first, second]
    assert first < second < third


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_new_connection_that_ends_without_a_byte_is_not_repeated(way: str):
    """The request may have been worked on; there the caller decides."""
    chats = []

    def serve(connection: socket.socket, number: int) -> None:
        if is_chat(read_request(connection)):
            chats.append(number)
        else:
            connection.sendall(whole(b"{}", "404 Not Found"))

    with raw(serve) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        for ask in caller(model, way):
            with pytest.raises(ConnectionFailedError, match=r"failed: \S"):
                ask()
    assert len(chats) == 1


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_kept_connection_that_ends_within_an_answer_is_not_repeated(way: str):
    """The request was worked on: once more could do twice what it asks for."""
    chats = []

    def serve(connection: socket.socket, number: int) -> None:
        for end in (None, 40):
            if not is_chat(read_request(connection)):
                connection.sendall(whole(b"{}", "404 Not Found"))
                return
            chats.append(number)
            connection.sendall(whole(ANSWER)[:end])

    with raw(serve) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        for ask in caller(model, way):
            assert ask().text == "yes"
            with pytest.raises(ConnectionFailedError):
                ask()
    assert len(chats) == 2


def chunked(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
    return b"%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body)


@pytest.mark.parametrize("write", [whole, chunked])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_follows_an_answer_is_not_the_next_ones(way: str, write: Callable[[bytes], bytes]):
    """A server or a proxy that answers once too often would be a request ahead from then on."""
    asked = []

    def serve(connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            if not is_chat(request):
                connection.sendall(whole(b"{}", "404 Not Found"))
                continue
            asked.append(number)
            answer = write(ANSWER.replace(b"yes", b"answer %d" % len(asked)))
            connection.sendall(answer + answer)

    with raw(serve) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        for ask in caller(model, way):
            assert [ask().text for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]


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


def test_connections_leave_room_for_files():
    """A quarter of the soft limit; what is more waits for its turn."""
    assert most_connections(256) == 64
    assert most_connections(resource.RLIM_INFINITY) == most_connections(1 << 20) == 256
    assert most_connections(2) == 1


MANY = """
import asyncio, resource, sys
from concurrent.futures import ThreadPoolExecutor
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model="m", base_url=sys.argv[1])
if sys.argv[2] == "abatch":
    answers = asyncio.run(model.abatch(["hi"] * 300))
else:
    with ThreadPoolExecutor(300) as pool:
        answers = list(pool.map(model.invoke, ["hi"] * 300))
print(sum(answer.text == "yes" for answer in answers))
"""


@pytest.mark.parametrize("way", ["threads", "abatch"])
def test_three_hundred_calls_answer_under_a_small_limit_of_files(serve, way: str):
    """They wait for their turn, in a process whose limit is a Mac's usual one."""
    model, dialect = serve(Reply(text="yes", pause=0.01))
    command = [sys.executable, "-c", MANY, model.base_url, way]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "300", done.stderr[-2000:]
    assert len(dialect.requests) == 300


def test_too_many_open_files_is_told_as_such(serve):
    """It says nothing of the server, which is not gone."""
    model, _ = serve(Reply(text="yes"))
    model.invoke("hi")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    other = ChatVllmMlx(model="m", base_url=model.base_url, default_headers={"x": "1"})
    chat = other._chat(other._external(None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ConnectionFailedError, match="open files") as caught:
            chat.invoke([HumanMessage("hi")])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit" in str(caught.value)
    assert not caught.value.refused
