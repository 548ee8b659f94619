"""What the guard of the port does with connections that are over before it has looked at them."""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import anyio
import httpcore2
import httpx2
import pytest

from langchain_car_vllm.wire.transport.port_guard import async_hooks, sync_hooks

_CONNECTED = "connection.connect_tcp.complete"
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


def test_a_connection_that_was_reset_is_no_connection(listener: Listener):
    """It is closed, and the error is one that is met by looking for the server anew."""
    request = httpx2.Request("GET", "http://127.0.0.1")
    [hook] = sync_hooks(lambda *_: True)["request"]
    hook(request)
    stream = httpcore2.SyncBackend().connect_tcp("127.0.0.1", listener.port)
    listener.reset(stream.get_extra_info("socket"))

    with pytest.raises(httpx2.ConnectError, match="closed"):
        request.extensions["trace"](_CONNECTED, {"return_value": stream})

    assert stream.get_extra_info("socket").fileno() == -1


def test_neither_is_it_for_asynchronous_clients(listener: Listener):
    """The same on an event loop, whose streams then have no address of the other end."""

    async def connect() -> int:
        request = httpx2.Request("GET", "http://127.0.0.1")
        [hook] = async_hooks(lambda *_: True)["request"]
        await hook(request)
        stream = await httpcore2.AnyIOBackend().connect_tcp("127.0.0.1", listener.port)
        peer = stream.get_extra_info("socket")
        listener.reset(peer)

        with pytest.raises(httpx2.ConnectError, match="closed"):
            await request.extensions["trace"](_CONNECTED, {"return_value": stream})

        await anyio.lowlevel.checkpoint()
        return peer.fileno()

    assert anyio.run(connect) == -1
