"""What the guard of the port does with connections that are over before it has looked at them."""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import anyio
import httpcore2
import pytest

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
