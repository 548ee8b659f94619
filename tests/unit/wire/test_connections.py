"""Connections: reused only where they live, repeated only where nothing was read, and not many."""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fakes.reply import Reply
from langchain_core.messages import HumanMessage
from unit.wire.raw_server import raw, read_request, whole

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.wire.errors import (
    ConnectionFailedError,
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


def test_connections_leave_room_for_files():
    """A quarter of the soft limit; what is more waits for its turn."""
    assert most_connections(256) == 64
    assert most_connections(None) == most_connections(1 << 20) == 256
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


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("rest", ["open", "broken", "later"])
def test_an_answer_that_has_ended_waits_for_nothing(way: str, rest: str):
    """Some servers keep its connection open or break it off; one that is whole is used again."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}
    events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    is_over = threading.Event()

    def serve(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            if not is_chat(request):
                connection.sendall(whole(b"{}"))
                continue
            connection.sendall(head + b"%x\r\n%b\r\n" % (len(events), events))
            if rest == "later":
                connection.sendall(b"0\r\n\r\n")
            else:
                is_over.wait(30 if rest == "open" else 0)
                return

    with raw(serve) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url, max_retries=0, timeout=20)
        for ask in caller(model, way):
            assert ask().text == "yes"
            before = server.connections
            assert ask().text == "yes"
            assert server.connections == before + (rest != "later")
        is_over.set()
