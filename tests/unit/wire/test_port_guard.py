"""What the guard of the port does with connections that are over before it has looked at them."""

import socket
import struct
import threading
from collections.abc import Iterator

import anyio
import httpcore2
import httpx2
import pytest

from langchain_car_vllm.wire.transport.port_guard import async_hooks, sync_hooks

_CONNECTED = "connection.connect_tcp.complete"
_RESETS_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture(name="resetting_port")
def _resetting_port() -> Iterator[int]:
    """A listener that resets every connection, as the system does for a server that was killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS_ON_CLOSE)
                accepted.close()

        thread = threading.Thread(target=reset)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _wait_for_reset(peer: socket.socket) -> None:
    peer.setblocking(True)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_a_connection_that_was_reset_is_no_connection(resetting_port: int):
    request = httpx2.Request("GET", "http://127.0.0.1")
    [hook] = sync_hooks(lambda *_: True)["request"]
    hook(request)
    stream = httpcore2.SyncBackend().connect_tcp("127.0.0.1", resetting_port)
    _wait_for_reset(stream.get_extra_info("socket"))

    with pytest.raises(httpx2.ConnectError, match="closed"):
        request.extensions["trace"](_CONNECTED, {"return_value": stream})

    assert stream.get_extra_info("socket").fileno() == -1


def test_neither_is_it_for_asynchronous_clients(resetting_port: int):
    async def connect() -> int:
        request = httpx2.Request("GET", "http://127.0.0.1")
        [hook] = async_hooks(lambda *_: True)["request"]
        await hook(request)
        stream = await httpcore2.AnyIOBackend().connect_tcp("127.0.0.1", resetting_port)
        peer = stream.get_extra_info("socket")
        with socket.socket(fileno=socket.dup(peer.fileno())) as other:
            _wait_for_reset(other)
            other.setblocking(False)

        with pytest.raises(httpx2.ConnectError, match="closed"):
            await request.extensions["trace"](_CONNECTED, {"return_value": stream})

        await anyio.lowlevel.checkpoint()
        return peer.fileno()

    assert anyio.run(connect) == -1
