"""Turns: a batched multimodal server gets one request at a time, in the order of asking."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, eventually

from langchain_car_vllm.server import alease, lease
from langchain_car_vllm.server.client.admission import Turn
from langchain_car_vllm.server.directory import ServerDirectory


@pytest.fixture
def directory(tmp_path) -> ServerDirectory:
    made = ServerDirectory(tmp_path / "key")
    made.create()
    return made


@pytest.fixture
def multimodal(fake: Fake) -> Fake:
    (fake.model / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "vision_config": {}, "max_position_embeddings": 2048})
    )
    return fake


def test_first_come_first_served(directory: ServerDirectory):
    """Only the oldest ticket gets the turn."""
    turns = [Turn(directory) for _ in range(3)]
    assert not turns[1].try_take()
    assert turns[0].try_take()
    assert not turns[1].try_take()
    turns[0].give_back()
    assert not turns[2].try_take()
    assert turns[1].try_take()
    turns[1].give_back()
    assert turns[2].try_take()
    turns[2].give_back()
    assert not any(directory.turns.iterdir())


def test_who_leaves_the_queue_lets_the_next_through(directory: ServerDirectory):
    """A waiter that gives up blocks nobody."""
    first, second = Turn(directory), Turn(directory)
    first.give_back()
    assert second.try_take()
    second.give_back()


def test_forked_child_keeps_no_turn(directory: ServerDirectory):
    """A child that was forked during a turn holds nothing of it once the parent is dead."""
    code = f"""
import os, sys
from pathlib import Path
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.client.admission import Turn
turn = Turn(ServerDirectory(Path({str(directory.path)!r})))
assert turn.try_take()
if not os.fork():
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forked\n"
    parent.kill()
    parent.wait()
    another = Turn(directory)
    assert another.try_take()
    another.give_back()
    parent.communicate()


def test_batched_multimodal_server_has_one_request_at_a_time(multimodal: Fake):
    """A second lease of such a server waits for the first to end, from whatever process."""
    client = ClientProcess(multimodal, engine="batched")
    assert client.read() == "began"
    assert client.read() == "leased 1"
    waiting = []

    def second() -> int:
        spec = multimodal.spec(engine="batched")
        with lease(spec, policy=FAST, on_progress=waiting.append) as held:
            return held.endpoint.generation

    call = Background(second)
    eventually(lambda: waiting and waiting[-1].stage == "queued", "the second to queue")
    assert call.is_alive()
    client.finish()
    assert call.result() == 1


def test_processes_take_turns_in_the_order_of_asking(multimodal: Fake):
    """Who asked first is answered first, whichever process it is."""
    turns = multimodal.directory(engine="batched").turns
    clients = []
    for waiting in range(4):
        clients.append(ClientProcess(multimodal, engine="batched"))
        assert clients[-1].read() == "began"
        if waiting == 0:
            assert clients[0].read() == "leased 1"
        eventually(lambda number=waiting: len(tickets(turns)) == number, "the ticket")
    for number, client in enumerate(clients):
        if number:
            assert client.read() == "leased 1"
        assert len(tickets(turns)) == len(clients) - 1 - number
        client.finish()


def tickets(turns: Path) -> list[str]:
    return [path.name for path in turns.glob("[!.]*")]


def test_turn_of_a_killed_process_is_free(multimodal: Fake):
    """The kernel gives the turn of a killed client to the next."""
    client = ClientProcess(multimodal, engine="batched")
    assert client.read() == "began"
    assert client.read() == "leased 1"
    client.kill()
    with lease(multimodal.spec(engine="batched"), policy=FAST):
        pass


def test_simple_engine_needs_no_turns(multimodal: Fake):
    """The queueing engine, which is the default for media, admits all and queues by itself."""
    with lease(multimodal.spec(), policy=FAST) as first:
        assert first.endpoint.engine == "simple"
        with lease(multimodal.spec(), policy=FAST):
            pass


async def test_cancelled_waiter_leaves_the_queue(multimodal: Fake):
    """A task that is cancelled while it waits for its turn blocks nobody behind it."""
    spec = multimodal.spec(engine="batched")

    async def take() -> None:
        async with alease(spec, policy=FAST):
            pass

    async with alease(spec, policy=FAST):
        task = asyncio.create_task(take())
        turns = multimodal.directory(engine="batched").turns
        await asyncio.to_thread(
            lambda: eventually(lambda: any(turns.iterdir()), "the ticket to be drawn")
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait_for(take(), 5)
