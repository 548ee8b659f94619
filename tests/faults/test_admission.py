"""Admission: who may send to a server that all processes share, and when."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from faults.support import FAST, Background, Fake, eventually

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import ServerBusyError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import alease, lease
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.tickets import Rules, read_tickets
from langchain_car_vllm.wire.errors import PromptTooLongError


class Server:
    """Tells what it works on, as the real one's `/v1/status` does."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.looks = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                server.looks += 1
                raw = json.dumps({"requests": server.requests}).encode()
                self.send_response(200 if self.path == "/v1/status" else 404)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def directory(tmp_path: Path) -> ServerDirectory:
    made = ServerDirectory(tmp_path / "key")
    made.create()
    return made


Make = Callable[..., Admission]


@pytest.fixture
def admission(directory: ServerDirectory, server: Server) -> Iterator[Make]:
    """Return a factory of gates of one batched multimodal server."""
    made = []

    def make(**serving: object) -> Admission:
        facts = {"engine": "batched", "multimodal": True, **serving}
        endpoint = Endpoint(
            base_url=server.url, api_key="k", served_model="m", generation=1, **facts
        )
        made.append(Admission(directory, endpoint, None, 0.001, 0.2))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


def enters(gate: Admission, tokens: int = 10, *, late: bool = False) -> bool:
    return gate.try_enter(tokens, arrives_late=late)


def enter(gate: Admission, tokens: int = 10, *, late: bool = False) -> None:
    eventually(lambda: enters(gate, tokens, late=late), "the gate to open")


def tickets(directory: ServerDirectory) -> list[str]:
    return [ticket.stage for ticket in sorted(read_tickets(directory.turns, 1))]


def test_prompts_are_read_one_after_the_other(admission: Make, directory: ServerDirectory):
    """The next request may be sent at the first sign of the last one's answer, not at its end."""
    gates = [admission() for _ in range(3)]
    assert enters(gates[0])
    assert not enters(gates[1])
    assert not enters(gates[2])
    gates[0].begin()
    assert not enters(gates[2]), "it overtook an older one"
    assert enters(gates[1])
    assert tickets(directory) == ["answering", "prefill", "waiting"]
    gates[1].leave(is_over=True)
    assert enters(gates[2])
    gates[2].begin()
    for gate in gates:
        gate.leave(is_over=False)
    assert tickets(directory) == []
    assert enters(gates[0]), "a gate can be entered again"


def test_who_leaves_the_queue_lets_the_next_through(admission: Make):
    """A waiter that gives up blocks nobody."""
    first, second, third = admission(), admission(), admission()
    assert enters(first)
    assert not enters(second)
    assert not enters(third)
    second.close()
    first.begin()
    assert enters(third)
    assert not enters(second), "a closed gate lets nobody in"


def test_abandoned_prompts_are_awaited(admission: Make, server: Server, directory: ServerDirectory):
    """A request that is given up while it is read gives its turn on once the server let go."""
    server.requests = [{"request_id": "a", "phase": "prefill"}]
    first, second = admission(), admission()
    enter(first)
    first.leave(is_over=False)
    assert tickets(directory) == ["prefill"]
    assert not enters(second)
    looks = server.looks
    eventually(lambda: not enters(second) and server.looks > looks + 2, "the server to be asked")
    assert not enters(second)
    server.requests = [{"request_id": "b", "phase": "generation"}]
    enter(second)


def test_answers_that_arrive_late_are_seen_to_begin(admission: Make, server: Server):
    """A constrained answer shows nothing until its end; the server's status tells it."""
    first, second = admission(), admission()
    enter(first, late=True)
    server.requests = [{"request_id": "a", "phase": "prefill"}]
    looks = server.looks
    eventually(lambda: not enters(second) and server.looks > looks + 2, "the server to be asked")
    assert not enters(second)
    server.requests = [{"request_id": "a", "phase": "generation"}]
    enter(second)


def test_an_older_answer_is_not_taken_for_the_new_one(admission: Make, server: Server):
    """What the server worked on before the request was sent says nothing of the request."""
    older, first, second = admission(), admission(), admission()
    enter(older)
    older.begin()
    server.requests = [{"request_id": "old", "phase": "generation"}]
    enter(first, late=True)
    looks = server.looks
    eventually(lambda: not enters(second) and server.looks > looks + 3, "the server to be asked")
    assert not enters(second)
    server.requests.append({"request_id": "new", "phase": "generation"})
    enter(second)


def test_what_fits_later_waits(admission: Make, directory: ServerDirectory):
    """Live requests, each as wide as the longest, stay within the memory that was set aside."""
    given = {"multimodal": False, "kv_room_tokens": 120}
    first, second, third = admission(**given), admission(**given), admission(**given)
    assert enters(first, 80)
    assert not enters(second, 60)
    assert not enters(third, 10), "nobody overtakes, or a large one would wait forever"
    first.leave(is_over=True)
    assert enters(second, 60)
    assert enters(third, 40)
    second.leave(is_over=False)
    third.leave(is_over=False)
    assert tickets(directory) == []


def test_company_is_limited(admission: Make):
    """No more requests at the same time than the server was told to take."""
    given = {"multimodal": False, "max_sequences": 2}
    gates = [admission(**given) for _ in range(3)]
    assert [enters(gate) for gate in gates] == [True, True, False]
    gates[0].leave(is_over=True)
    assert enters(gates[2])


@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_admission_by_tokens_can_be_turned_off(
    admission: Make, monkeypatch: pytest.MonkeyPatch, value: str
):
    """`CAR_VLLM_MLX_ADMISSION=0` is for those who know better; prompts still take turns."""
    monkeypatch.setenv("CAR_VLLM_MLX_ADMISSION", value)
    assert admission(multimodal=False, kv_room_tokens=1, max_sequences=1).is_open
    turns = admission(kv_room_tokens=1)
    assert turns.room is None
    assert not turns.is_open


@pytest.mark.parametrize("engine", ["batched", "simple"])
def test_full_queue_refuses(
    admission: Make, directory: ServerDirectory, monkeypatch: pytest.MonkeyPatch, engine: str
):
    """Where the queue has an end: those who wait go on to wait, one more is told to come later."""
    monkeypatch.setenv("CAR_VLLM_MLX_MAX_QUEUE", "2")
    given = {"engine": engine, "multimodal": False, "max_sequences": 1}
    first, second, third, fourth = (admission(**given) for _ in range(4))
    assert enters(first)
    assert not enters(second)
    assert not enters(third)
    with pytest.raises(ServerBusyError, match="2 requests wait") as caught:
        enters(fourth)
    assert caught.value.is_retryable
    assert "CAR_VLLM_MLX_MAX_QUEUE" in str(caught.value.hint)
    fourth.leave(is_over=False)
    assert tickets(directory) == ["answering", "waiting", "waiting"]
    assert not enters(third)
    first.leave(is_over=True)
    enter(second)
    assert not enters(fourth), "there is room to wait in again"


def test_servers_that_queue_need_no_gate(admission: Make, directory: ServerDirectory):
    """The simple engine, text without known limits: nothing is written."""
    for serving in ({"engine": "simple"}, {"multimodal": False}, {"engine": None}):
        gate = admission(**serving)
        assert gate.is_open
        assert enters(gate)
    assert tickets(directory) == []


SENDER = """
import os, sys, time
from pathlib import Path
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.directory import ServerDirectory
endpoint = Endpoint(base_url={url!r}, api_key="k", served_model="m", generation=1,
                    engine="batched", multimodal=True)
gate = Admission(ServerDirectory(Path({path!r})), endpoint, None, 0.001)
while not gate.try_enter(1, arrives_late=False):
    time.sleep(0.001)
print("entered", flush=True)
{then}
sys.stdin.readline()
gate.begin()
print("began", flush=True)
sys.stdin.readline()
gate.leave(is_over=True)
"""


def sender(
    directory: ServerDirectory, server: Server, then: str = "", url: str | None = None
) -> "subprocess.Popen[str]":
    code = SENDER.format(url=url or server.url, path=str(directory.path), then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line_of(process: "subprocess.Popen[str]", **then: str) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_take_turns_in_the_order_of_asking(directory: ServerDirectory, server: Server):
    """Who asked first is read first, whichever process it is."""
    senders = []
    for waiting in range(4):
        senders.append(sender(directory, server))
        if waiting == 0:
            assert line_of(senders[0]) == "entered"
        eventually(lambda n=waiting: len(tickets(directory)) == n + 1, "the ticket")
    for number, process in enumerate(senders):
        if number:
            assert line_of(process) == "entered"
        assert tickets(directory) == (
            ["answering"] * number + ["prefill"] + ["waiting"] * (3 - number)
        )
        go_on(process)
        assert line_of(process) == "began"
    for process in senders:
        process.communicate("\n")
    assert tickets(directory) == []


@pytest.mark.parametrize("stage", ["prefill", "answering", "waiting"])
def test_the_place_of_a_killed_process_is_given_on(
    admission: Make, directory: ServerDirectory, server: Server, stage: str
):
    """At once, but of one that dies while its prompt is read only once the server has let go."""
    first = sender(directory, server)
    assert line_of(first) == "entered"
    killed = first
    if stage == "answering":
        go_on(first)
        assert line_of(first) == "began"
    elif stage == "waiting":
        killed = sender(directory, server)
        eventually(lambda: "waiting" in tickets(directory), "the ticket")
    server.requests = [{"request_id": "a", "phase": "prefill"}]
    gate = admission()
    if stage == "waiting":
        assert not enters(gate)
    killed.kill()
    killed.communicate()
    if stage == "prefill":
        looks = server.looks
        eventually(lambda: not enters(gate) and server.looks > looks + 2, "the server to be asked")
        server.requests = []
    elif stage == "waiting":
        go_on(first)
        assert line_of(first) == "began"
    enter(gate)
    if first is not killed:
        first.communicate("\n")


@pytest.mark.parametrize("stage", ["prefill", "answering", "waiting"])
def test_the_place_of_a_suspended_process_is_given_on(
    admission: Make, directory: ServerDirectory, server: Server, stage: str
):
    """After a while, and where its prompt was read only once the server has let go of it."""
    first = sender(directory, server)
    assert line_of(first) == "entered"
    suspended = first
    if stage == "answering":
        go_on(first)
        assert line_of(first) == "began"
    elif stage == "waiting":
        suspended = sender(directory, server)
        eventually(lambda: "waiting" in tickets(directory), "the ticket")
    server.requests = [{"request_id": "a", "phase": "prefill"}]
    gate = admission(max_sequences=1)
    assert not enters(gate)
    suspended.send_signal(signal.SIGSTOP)
    if stage == "prefill":
        looks = server.looks
        eventually(lambda: not enters(gate) and server.looks > looks + 2, "the server to be asked")
        server.requests = []
    elif stage == "waiting":
        go_on(first)
        assert line_of(first) == "began"
        go_on(first)
        first.wait()
    enter(gate)
    suspended.send_signal(signal.SIGCONT)
    if stage == "waiting":
        eventually(lambda: tickets(directory) == ["waiting", "prefill"], "it to queue again")
        gate.leave(is_over=True)
        assert line_of(suspended) == "entered"
    for process in {first, suspended}:
        process.communicate("\n\n")
    gate.leave(is_over=True)
    assert tickets(directory) == []


def test_forked_child_keeps_no_place(admission: Make, directory: ServerDirectory, server: Server):
    """A child that was forked during a turn holds nothing of it once the parent is dead."""
    fork = """
if not os.fork():
    print("forked", flush=True)
    sys.stdin.read()
    gate.close()
    os._exit(0)
"""
    parent = sender(directory, server, fork)
    assert {line_of(parent), line_of(parent)} == {"entered", "forked"}
    parent.kill()
    parent.wait()
    enter(admission())
    parent.communicate()


@pytest.fixture
def multimodal(fake: Fake) -> Fake:
    (fake.model / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "vision_config": {}, "max_position_embeddings": 2048})
    )
    return fake


async def test_cancelled_waiter_leaves_the_queue(multimodal: Fake):
    """A task that is cancelled while it waits for its turn blocks nobody behind it."""
    spec = multimodal.spec()

    async def take(sign: asyncio.Event | None = None) -> None:
        async with alease(spec, policy=FAST) as held:
            while not await asyncio.to_thread(held.gate.try_enter, 1, arrives_late=False):
                if sign is not None:
                    sign.set()
                await asyncio.sleep(held.gate.tick)

    async with alease(spec, policy=FAST) as held:
        assert held.endpoint.engine == "batched"
        assert await asyncio.to_thread(held.gate.try_enter, 1, arrives_late=False)
        waits = asyncio.Event()
        task = asyncio.create_task(take(waits))
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.gate.begin()
        await asyncio.wait_for(take(), 30)


def test_chats_of_one_server_are_read_one_after_the_other(multimodal: Fake, monkeypatch):
    """Through the product: the second stream begins once the first one's answer has."""
    gate = multimodal.gate("tokens")
    multimodal.switch(token_gate=gate)
    waits: list[Progress] = []
    first = ChatVllmMlx(model=str(multimodal.model), max_tokens=3)
    second = ChatVllmMlx(model=str(multimodal.model), max_tokens=3, on_progress=waits.append)
    begun = first.stream("a")
    assert next(begun).text
    stream = second.stream("b")
    assert next(stream).text, "the first is still answering"
    Path(gate).touch()
    assert len(list(begun)) + len(list(stream)) > 2
    with lease(multimodal.spec(), policy=FAST) as held:
        assert enters(held.gate)
        call = Background(lambda: second.invoke("c").text)
        eventually(lambda: any(p.stage == "queued" for p in waits), "the second to queue")
        assert "waiting for another request's prompt to be read" in {p.detail for p in waits}
        assert call.is_alive()
        held.gate.begin()
        assert call.result()


def test_what_never_fits_is_refused_before_it_is_sent(multimodal: Fake, monkeypatch):
    """With the numbers; what fits is answered."""
    llm = ChatVllmMlx(model=str(multimodal.model), max_tokens=3)
    llm.invoke("a")
    rules = Rules(serial_prefill=True, room=50)
    monkeypatch.setattr(f"{Admission.__module__}.rules_of", lambda endpoint: rules)
    assert llm.invoke("a").text
    began = time.monotonic()
    with pytest.raises(PromptTooLongError, match=r"may have .* holds 50"):
        llm.invoke("a", max_tokens=60)
    assert time.monotonic() - began < 30
    assert llm.invoke("a").text
