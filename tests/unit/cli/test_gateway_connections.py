"""The gateway's connections: how many there may be, how long, and what breaks the rules of HTTP."""

import asyncio
import gc
import json
import shlex
import socket
import subprocess
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from faults.support import PATIENCE, Fake
from unit.cli.conftest import command
from unit.cli.test_sharing import question, request

from langchain_car_vllm.cli import gateway_server
from langchain_car_vllm.cli.gateway_process import Published
from langchain_car_vllm.gateway import HAS_KEY, Gateway

KEY = "key"


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[Callable[[], Any]]:
    """Yield what connects to a gateway."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = gateway_server.gateway_server(gateway)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield partial(asyncio.open_connection, *listener.getsockname())
    finally:
        server.should_exit = True
        await serving


HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"


async def ask_until_closed(writer: asyncio.StreamWriter) -> None:
    """Send requests and read no answer."""
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while True:
                writer.write(HEALTH * 100)
                await writer.drain()


def test_a_connection_without_a_request_is_ended(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """Whoever sends nothing, half a header or half a body holds no connection, before or after."""
    monkeypatch.setattr(gateway_server, "_SILENT_SECONDS", 0.2)

    async def run():
        async with listening(Gateway(fake.spec(), KEY)) as connect:
            for first, status in ((b"", None), (HEALTH, b"200"), (UPLOAD, b"401")):
                for then in (b"", b"GET /health HTTP/1.1\r\nhost: "):
                    reader, writer = await connect()
                    writer.write(first)
                    if status is not None:
                        assert (await reader.readline()).split()[1] == status
                    writer.write(then)
                    with suppress(ConnectionResetError):
                        await asyncio.wait_for(reader.read(), PATIENCE)
                    writer.close()

    asyncio.run(run())


@contextmanager
def served(fake: Fake, limit: str) -> Iterator[tuple[int, Published]]:
    """Have the model served within a limit of the shell; yield its process id and address."""
    words = shlex.join(command("serve", str(fake.model), "--port", "0", "--json"))
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"{limit}; exec {words}"], stdout=subprocess.PIPE, text=True
    )
    with ExitStack() as stack:
        stack.callback(process.communicate)
        stack.callback(process.kill)
        yield process.pid, Published(**json.loads(process.stdout.readline()))


@pytest.mark.parametrize("first", [b"", HEALTH[:-2], HEALTH, HEALTH * 3000])
def test_a_flood_of_connections_holds_nobody_up(fake: Fake, first: bytes):
    """A local page or program needs no key for them; they give way to whoever comes next."""
    with ExitStack() as stack:
        pid, published = stack.enter_context(served(fake, "ulimit -n 160"))
        place = urlsplit(published.base_url)
        for _ in range(400):
            flooding = stack.enter_context(socket.create_connection((place.hostname, place.port)))
            flooding.setblocking(False)
            with suppress(OSError):
                flooding.send(first)
        key = published.read_key()
        for _ in range(3):
            status, text = request(
                published, "/v1/chat/completions", key, question(published, stream=True)
            )
            assert status == 200
            assert text.endswith("data: [DONE]\n\n")
        assert len(psutil.Process(pid).net_connections("tcp4")) < 160


def test_many_requests_at_once_where_few_files_may_be_open(fake: Fake):
    """Programs of a Mac begin with 256, which they may raise themselves."""
    gate = fake.gate("tokens")
    fake.switch(token_gate=gate)
    with ExitStack() as stack:
        _, published = stack.enter_context(served(fake, "ulimit -S -n 256"))
        parts = urlsplit(published.base_url)
        headers = {"authorization": f"Bearer {published.read_key()}"}
        body = json.dumps(question(published, stream=True))
        calls = []
        for _ in range(150):
            call = HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
            stack.callback(call.close)
            call.request("POST", "/v1/chat/completions", body, headers)
            calls.append(call)
        assert {call.getresponse().status for call in calls} == {200}
        fake.open_gate("tokens")


def test_a_burst_of_connections_waits_in_the_queue(fake: Fake):
    """Whom the system turns away tries again after a second, as of a batch of a hundred calls."""

    async def run():
        async with listening(Gateway(fake.spec(), KEY)) as connect:
            _, first = await connect()
            first.close()
            with ExitStack() as stack:
                for _ in range(100):  # the loop takes none of them meanwhile
                    waiting = stack.enter_context(socket.socket())
                    waiting.settimeout(0.5)
                    waiting.connect(connect.args)

    asyncio.run(run())


def test_where_all_connections_are_at_work_a_new_one_is_told_to_come_again(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    """Nobody's request is ended for another; clients of OpenAI's repeat what they are told so."""
    monkeypatch.setattr(gateway_server, "_MOST_CONNECTIONS", 1)
    gateway = Gateway(fake.spec(), KEY)
    going_on = asyncio.Event()

    async def run():
        begun = asyncio.Event()

        async def answer(scope, receive, send):
            if scope["type"] == "http":
                scope["state"][HAS_KEY] = True
                begun.set()
                await going_on.wait()
            await gateway(scope, receive, send)

        async with listening(answer) as connect:
            reader, writer = await connect()
            writer.write(HEALTH)
            await begun.wait()
            refused, other = await connect()
            told = await asyncio.wait_for(refused.read(), PATIENCE)
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in told
            going_on.set()
            assert (await reader.readline()).split()[1] == b"200"
            for open_ in (writer, other):
                open_.close()

    asyncio.run(run())


def test_a_connection_whose_answers_nobody_reads_is_ended(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    """It would be held forever, without a key, and one with a key would hold the model."""
    monkeypatch.setattr(gateway_server, "_UNREAD_SECONDS", 0.2)

    async def run():
        async with listening(Gateway(fake.spec(), KEY)) as connect:
            _, writer = await connect()
            await ask_until_closed(writer)

    asyncio.run(run())


def test_a_reader_that_left_is_forgotten(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """One that had not read all of its answers stayed in memory for ten minutes."""
    known, pause = weakref.WeakSet(), gateway_server._Connection.pause_writing

    def pause_and_leave(connection):
        pause(connection)
        known.add(connection.transport)
        connection.transport.abort()

    monkeypatch.setattr(gateway_server._Connection, "pause_writing", pause_and_leave)

    async def run():
        async with listening(Gateway(fake.spec(), KEY)) as connect:
            _, writer = await connect()
            await ask_until_closed(writer)
            writer.close()
        gc.collect()
        return len(known)

    assert asyncio.run(run()) == 0


def test_a_body_that_breaks_the_rules_is_no_failure_of_the_program(
    fake: Fake, capsys: pytest.CaptureFixture
):
    """Whoever can connect could fill the terminal or the log with tracebacks."""
    broken = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno\r\n"

    async def run():
        async with listening(Gateway(fake.spec(), KEY)) as connect:
            reader, writer = await connect()
            writer.write(broken)
            assert (await reader.readline()).split()[1] == b"400"
            await reader.read()
            writer.close()

    asyncio.run(run())
    assert "Traceback" not in capsys.readouterr().err


UPGRADE = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: %b\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"400",
            "https:// instead of http://",
        ),
        (UPGRADE % b"websocket", b"401", "WebSocket"),
        (UPGRADE % b"h2c", b"401", "WebSocket"),
    ],
)
def test_what_needs_no_key_is_told_once(
    fake: Fake, capsys: pytest.CaptureFixture, sent: bytes, status: bytes, told: str
):
    """A page that asks again and again could fill the log of a service."""

    async def run():
        async with listening(Gateway(fake.spec(), KEY)) as connect:
            for _ in range(3):
                reader, writer = await connect()
                writer.write(sent)
                assert (await reader.readline()).split()[1] == status
                writer.close()

    asyncio.run(run())
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
