"""Admission: who may send to a server that all processes share, and when."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults.support import FAST, Background, Fake, eventually
from faults.turns import Make, Server, enter, enters, tickets

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ServerBusyError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import alease, lease
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.tickets import Rules
from langchain_car_vllm.wire.errors import PromptTooLongError


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


def test_an_abandoned_prompt_that_the_engine_has_not_been_given_is_awaited(
    admission: Make, server: Server
):
    """A server that counts what has arrived is believed, not how fast it tells its status."""
    server.under_way = 1
    first, second = admission(), admission(patience=60)
    enter(first)
    first.leave(is_over=False)
    looks = server.looks
    eventually(lambda: not enters(second) and server.looks > looks + 9, "the server to be asked")
    assert not enters(second), "the prompt was still on its way to the engine"
    server.requests = [{"request_id": "a", "phase": "generation"}]
    enter(second)


def test_an_answer_that_nobody_reads_holds_nobody_up_forever(admission: Make, server: Server):
    """Its client stopped reading: the engine has let go of it, the server has not."""
    server.under_way = 1
    first, second = admission(), admission(patience=1)
    enter(first)
    first.leave(is_over=False)
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


def test_many_requests_at_once_enter_at_once(admission: Make):
    """Those of one process do not find the lock taken by each other, which costs a tick each."""
    count = 16
    gates = [admission(multimodal=False, kv_room_tokens=10_000) for _ in range(count)]
    together = threading.Barrier(count)

    def send(gate: Admission) -> bool:
        together.wait()
        return enters(gate)

    with ThreadPoolExecutor(count) as pool:
        for _ in range(5):
            assert all(pool.map(send, gates))
            for gate in gates:
                gate.leave(is_over=True)


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
    with pytest.raises(ServerBusyError, match="2 requests are already waiting") as caught:
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


@pytest.fixture
def multimodal(fake: Fake) -> Fake:
    fake.take_media()
    return fake


async def test_cancelled_waiter_leaves_the_queue(multimodal: Fake):
    """A task that is cancelled while it waits for its turn blocks nobody behind it."""
    spec = multimodal.spec()

    async def take(sign: asyncio.Event | None = None) -> None:
        async with alease(spec, policy=FAST) as held:
            while not await asyncio.to_thread(held.gate.try_enter, 1, arrives_late=False):
                if sign is not None:
                    sign.set()
                await asyncio.sleep(FAST.client_tick)

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
        assert "waiting while another request's prompt is read" in {p.detail for p in waits}
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
    with pytest.raises(PromptTooLongError, match=r"may need .* room for 50"):
        llm.invoke("a", max_tokens=60)
    assert time.monotonic() - began < 30
    assert llm.invoke("a").text
