"""What the guard of the port does with connections that are over before it has looked at them."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import anyio
import httpcore2
import pytest
from fakes.reply import Reply
from unit.wire.calling import WAYS

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import RequestTimeoutError
from langchain_car_vllm.wire.transport.port_guard import AsyncGuardedBackend, GuardedBackend

_RESETS_ON_CLOSE = struct.pack("ii", 1, 0)


class Listener:
    """A port that resets a connection when it is told to, as systems do for a killed server."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def reset(self, connected: socket.socket) -> None:
        """Reset the other end of a connection, and wait until this end knows it."""
        accepted, _ = self._socket.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS_ON_CLOSE)
        accepted.close()
        with socket.socket(fileno=socket.dup(connected.fileno())) as same:
            same.setblocking(True)
            with pytest.raises(ConnectionResetError):
                same.recv(1)
            same.setblocking(False)

    def close(self) -> None:
        """Close the port."""
        self._socket.close()


@pytest.fixture(name="listener")
def _listener() -> Iterator[Listener]:
    with closing(Listener()) as listener:
        yield listener


class ResetBackend(httpcore2.SyncBackend):
    """Makes connections that are reset before anybody has looked at them."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.connected: list[socket.socket] = []

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        stream = super().connect_tcp(*args, **kwargs)
        self.connected.append(stream.get_extra_info("socket"))
        self._listener.reset(self.connected[-1])
        return stream


class AsyncResetBackend(httpcore2.AnyIOBackend):
    """The same for an event loop."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.connected: list[socket.socket] = []

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        stream = await super().connect_tcp(*args, **kwargs)
        self.connected.append(stream.get_extra_info("socket"))
        self._listener.reset(self.connected[-1])
        return stream


def test_a_connection_that_was_reset_is_no_connection(listener: Listener):
    """It is closed, and the error is one that is met by looking for the server anew."""
    backend = ResetBackend(listener)
    guarded = GuardedBackend(lambda *_: True, backend)
    with pytest.raises(httpcore2.ConnectError, match="closed"):
        guarded.connect_tcp("127.0.0.1", listener.port)
    assert [connected.fileno() for connected in backend.connected] == [-1]


def test_neither_is_it_for_asynchronous_clients(listener: Listener):
    """The same on an event loop, whose streams then have no address of the other end."""
    backend = AsyncResetBackend(listener)
    guarded = AsyncGuardedBackend(lambda *_: True, backend)

    async def connect() -> list[int]:
        with pytest.raises(httpcore2.ConnectError, match="closed"):
            await guarded.connect_tcp("127.0.0.1", listener.port)
        await anyio.lowlevel.checkpoint()
        return [connected.fileno() for connected in backend.connected]

    assert anyio.run(connect) == [-1]


class LeftStream(httpcore2.AsyncMockStream):
    """A stream whose user leaves in the instant in which it is secured."""

    scope: anyio.CancelScope

    async def start_tls(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        self.scope.cancel()
        return self


class LeftBackend(httpcore2.AsyncMockBackend):
    """The same for the instant in which a connection stands, and for connections to secure."""

    def __init__(self, scope: anyio.CancelScope, *, is_secured: bool) -> None:
        self.stream = LeftStream([b"HTTP/1.1 200 OK\r\n\r\n"])
        self.stream.scope = scope
        self._is_secured = is_secured

    async def connect_tcp(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        if not self._is_secured:
            self.stream.scope.cancel()
        return self.stream


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_that_stands_when_its_user_leaves_is_closed(scheme: str):
    """A web server cancels by scopes of anyio; httpcore would keep the connection for nobody."""

    async def leave() -> tuple[httpcore2.AsyncConnectionPool, bool]:
        with anyio.CancelScope() as scope:
            backend = LeftBackend(scope, is_secured=scheme == "https")
            pool = httpcore2.AsyncConnectionPool(network_backend=AsyncGuardedBackend(None, backend))
            await pool.request("GET", f"{scheme}://127.0.0.1/")
        assert scope.cancelled_caught
        return pool, backend.stream._closed

    pool, is_closed = anyio.run(leave)
    assert is_closed
    assert not pool.connections


def connected_peers(host: str, port: int) -> list[str]:
    """Return whom both kinds of connections lead to."""
    stream = GuardedBackend(None).connect_tcp(host, port, 30.0)
    peers = [stream.get_extra_info("server_addr")[0]]
    stream.close()

    async def connect() -> None:
        stream = await AsyncGuardedBackend(None).connect_tcp(host, port, 30.0)
        peers.append(stream.get_extra_info("server_addr")[0])
        await stream.aclose()

    anyio.run(connect)
    return peers


def test_each_address_of_a_name_is_tried(listener: Listener, monkeypatch: pytest.MonkeyPatch):
    """A name may stand for one that nobody listens on, as `localhost` does."""
    entries = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", listener.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", listener.port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    assert connected_peers("name.example", listener.port) == ["127.0.0.1"] * 2


def test_a_name_that_nobody_knows_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch):
    """As one that nobody listens at."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(httpcore2.ConnectError, match=r"`name\.example` is not known"):
        connected_peers("name.example", 80)


@pytest.mark.parametrize("way", WAYS)
def test_timeout_ends_a_call_whose_name_is_looked_up(way: str, monkeypatch: pytest.MonkeyPatch):
    """The system's resolver takes as long as it likes, and knows no limit."""
    answered = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        answered.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    model = ChatVllmMlx("m", base_url="http://name.example/v1", timeout=0.5)
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        WAYS[way](model, "hi")
    assert time.monotonic() - began < 30
    answered.set()


def test_a_full_executor_keeps_no_name_from_being_looked_up(serve):
    """The threads of an event loop are everybody's."""
    model, _ = serve(Reply(text="yes"))
    named = ChatVllmMlx("m", base_url=model.base_url.replace("127.0.0.1", "localhost"))

    async def ask() -> str:
        loop = asyncio.get_running_loop()
        go_on = threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, go_on.wait)
        try:
            return (await asyncio.wait_for(named.ainvoke("hi"), 60)).text
        finally:
            go_on.set()

    assert asyncio.run(ask()) == "yes"
