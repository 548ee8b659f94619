"""Names that stand for several addresses, of which some never answer."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import anyio
import httpcore2
import pytest

from langchain_car_vllm.support.bounded_http import HttpError, connect_to, fetch
from langchain_car_vllm.wire.transport.port_guard import AsyncGuardedBackend, GuardedBackend

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="macOS has no such addresses, and answers beyond a full queue"
)
NAME = "name.example"
SILENT = [f"127.0.0.{number}" for number in range(2, 9)]
LATE = (httpcore2.ConnectTimeout, HttpError, TimeoutError)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who answers, at an address whose port is silent at others."""
    with ExitStack() as stack:
        found = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in SILENT:
            place = (address, found.getsockname()[1])
            stack.enter_context(socket.create_server(place, backlog=0))
            for _ in range(3):  # its queue is full then: whoever comes hears nothing
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(place)
        yield found


async def connect_on_a_loop(port: int, seconds: float) -> None:
    await (await AsyncGuardedBackend(None).connect_tcp(NAME, port, seconds)).aclose()


def look(port: int, seconds: float) -> None:
    with suppress(HttpError) if seconds > 1 else ExitStack():  # what answers speaks no HTTP
        fetch(f"http://{NAME}:{port}", seconds=seconds, most_bytes=9)


DOORS: dict[str, Callable[[int, float], None]] = {
    "a call": lambda port, seconds: GuardedBackend(None).connect_tcp(NAME, port, seconds).close(),
    "an event loop": lambda port, seconds: anyio.run(connect_on_a_loop, port, seconds),
    "a look": look,
    "the Hub": lambda port, seconds: connect_to(NAME, port, seconds).close(),
}


@pytest.fixture
def addresses(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the name stands for, which may be changed."""
    port, real = listener.getsockname()[1], socket.getaddrinfo
    addresses = [*SILENT, "127.0.0.1"]

    def look_up(host: str, *args: object, **more: object) -> list[object]:
        if host != NAME:
            return real(host, *args, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return addresses


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_the_addresses_of_a_name_share_the_time(
    door: Callable[[int, float], None], listener: socket.socket, addresses: list[str]
):
    """Silent ones leave time for the last, and all of them take no longer than was allowed."""
    port = listener.getsockname()[1]
    door(port, 4.0)
    listener.settimeout(0)
    listener.accept()[0].close()
    addresses.remove("127.0.0.1")
    began = time.monotonic()
    with pytest.raises(LATE):
        door(port, 1.0)
    assert time.monotonic() - began < 5


def test_an_answer_has_the_whole_time(listener: socket.socket, addresses: list[str]):
    """The share of one address is for the connection alone: a listing of the Hub takes longer."""
    addresses.reverse()
    with connect_to(NAME, listener.getsockname()[1], 9.0) as connected:
        assert connected.gettimeout() == 9.0
