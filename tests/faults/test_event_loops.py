"""What programs do to their event loops: full executors, and loops that are closed too early."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import psutil
import pytest
from fakes.published_configs import CROSS_ENCODER
from faults.support import FAST, PATIENCE, Fake, eventually

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.server import stop_server
from langchain_car_vllm.server.client_record import requesters
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.tickets import Ticket, read_tickets


@pytest.fixture
def model(fake: Fake) -> ChatVllmMlx:
    return ChatVllmMlx(model=str(fake.model), max_tokens=3)


@asynccontextmanager
async def full_executor() -> AsyncIterator[None]:
    """Have every thread of the loop's executor blocked, with more work waiting."""
    loop, end = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(2))
    jobs = [loop.run_in_executor(None, end.wait) for _ in range(4)]
    try:
        yield
    finally:
        end.set()
        await asyncio.gather(*jobs)


async def _streamed(model: ChatVllmMlx) -> str:
    return "".join([part.text async for part in model.astream("hi")])


async def _invoked(model: ChatVllmMlx) -> str:
    return (await model.ainvoke("hi")).text


async def _batched(model: ChatVllmMlx) -> str:
    return "".join(answer.text for answer in await model.abatch(["a", "b"]))


async def _called_for_another_model(model: ChatVllmMlx) -> str:
    return (await model.ainvoke("hi", model=model.model)).text


async def _warmed_up(model: ChatVllmMlx) -> str:
    await model.awarm_up()
    return "warm"


WAYS: dict[str, Callable[[ChatVllmMlx], Awaitable[str]]] = {
    "ainvoke": _invoked,
    "astream": _streamed,
    "abatch": _batched,
    "model of a call": _called_for_another_model,
    "awarm_up": _warmed_up,
}


async def test_full_executor_holds_no_call_up(fake: Fake, model: ChatVllmMlx):
    """From the start of the server to the end of the answer no thread of the loop's is needed."""
    async with full_executor():
        for way in WAYS.values():
            assert await asyncio.wait_for(way(model), PATIENCE)


async def test_full_executor_holds_no_turn_up(fake: Fake, model: ChatVllmMlx):
    """Where requests are read one after the other, neither their turn nor a replay needs it."""
    fake.take_media()
    fake.switch(crash_after=0)
    async with full_executor():
        call = asyncio.create_task(_batched(model))
        async with asyncio.timeout(PATIENCE):
            while not fake.starts():  # noqa: ASYNC110 - another process says it
                await asyncio.sleep(0.01)
            fake.switch()
            assert await call


async def test_full_executor_holds_no_vectors_up(fake: Fake):
    """Embeddings and rerankers go the same way."""
    embeddings = VllmMlxEmbeddings(model=str(fake.model))
    ranker = fake.model.with_name("ranker")
    shutil.copytree(fake.model, ranker)
    (ranker / "config.json").write_text(json.dumps(CROSS_ENCODER))
    reranker = VllmMlxReranker(model=str(ranker))
    async with full_executor():
        assert await asyncio.wait_for(embeddings.aembed_query("hi"), PATIENCE)
        assert await asyncio.wait_for(reranker.arerank(["hi"], "hi"), PATIENCE)


LEAVES_A_STREAM_OPEN = """
import asyncio, gc, sys
from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model=sys.argv[1], max_tokens=3)
loop = asyncio.new_event_loop()
stream = model.astream("hi")
loop.run_until_complete(anext(stream))
loop.close()
del stream, loop
for _ in range(3):  # what one round frees may be the last to hold something else
    gc.collect()
print("closed", flush=True)
sys.stdin.read()
"""


def test_stream_left_open_on_a_closed_loop_holds_nothing(fake: Fake):
    """A loop that is closed without its generators gives lease, turn and connection back."""
    fake.take_media()
    fake.switch(token_gate=fake.gate("token"))
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES_A_STREAM_OPEN, str(fake.model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        check_nothing_is_held(fake, program)


LEAVES_A_TASK_WAITING = """
import asyncio, sys
from langchain_car_vllm import ChatVllmMlx
seen = []
def note(progress):
    if way is invoked and progress.stage == "ready":
        seen.append(True)
model = ChatVllmMlx(model=sys.argv[1], max_tokens=3, on_progress=note)
async def streamed():
    async for _ in model.astream("hi"):
        seen.append(True)
async def invoked():
    await model.ainvoke("hi")
way = {"streamed": streamed, "invoked": invoked}[sys.argv[2]]
loop = asyncio.new_event_loop()
task = loop.create_task(way())
while not seen:
    loop.run_until_complete(asyncio.sleep(0.01))
loop.close()
print("closed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("multimodal", [False, True])
@pytest.mark.parametrize("way", ["streamed", "invoked"])
def test_task_that_waits_on_a_closed_loop_holds_nothing(fake: Fake, way: str, multimodal: bool):
    """Also where the program keeps it, and the loop: nobody will ever read the answer."""
    if multimodal:
        fake.take_media()
    fake.switch(token_gate=fake.gate("token"))
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES_A_TASK_WAITING, str(fake.model), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        check_nothing_is_held(fake, program)


def check_nothing_is_held(fake: Fake, program: "subprocess.Popen[str]") -> None:
    """Once the program says that it has closed its loop."""
    assert program.stdout is not None
    assert program.stdout.readline() == "closed\n"
    directory = fake.directory()

    def is_free() -> bool:
        tickets = [ticket for ticket in read_tickets(directory.turns, 1) if ticket.live]
        return not requesters(directory.clients) and not tickets

    eventually(is_free, "lease and turn")  # a step that was under way gives them back at its end
    port = fake.state().port
    open_ones = psutil.Process(program.pid).net_connections("tcp")
    assert port not in [c.raddr.port for c in open_ones if c.status == "ESTABLISHED" and c.raddr]
    assert stop_server(directory, force=False, policy=FAST)


ENDS_WITH_A_STREAM_OPEN = """
import asyncio, sys
from langchain_core.output_parsers import StrOutputParser
from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model=sys.argv[1], max_tokens=3)
kept = []
async def held():
    kept.append(model.astream("hi"))
    await anext(kept[-1])
async def held_chain():
    kept.append((model | StrOutputParser()).astream("hi"))
    await anext(kept[-1])
async def left():
    async for _ in model.astream("hi"):
        return
async def left_chain():
    async for _ in (model | StrOutputParser()).astream("hi"):
        return
async def left_events():
    async for event in model.astream_events("hi"):
        if event["event"] == "on_chat_model_stream":
            return
async def cancelled():
    begun = asyncio.Event()
    async def read():
        async for _ in model.astream("hi"):
            begun.set()
    kept.append(asyncio.create_task(read()))
    await begun.wait()
async def gathered():
    await asyncio.gather(left())
async def grouped():
    async with asyncio.TaskGroup() as group:
        group.create_task(left_chain())
async def waited_for():
    await asyncio.wait_for(left(), 60)
ways = (held, held_chain, left, left_chain, left_events, cancelled, gathered, grouped, waited_for)
for way in ways:
    asyncio.run(way())
print("ended", flush=True)
sys.stdin.read()
"""


def live_tickets(directory: ServerDirectory) -> list[Ticket]:
    return [ticket for ticket in read_tickets(directory.turns, 1) if ticket.live]


@pytest.mark.parametrize("multimodal", [False, True])
def test_loop_that_ends_with_a_stream_open_says_nothing(
    fake: Fake, multimodal: bool, monkeypatch: pytest.MonkeyPatch
):
    """It closes what it knows at once, in any order; all is given back, and nothing is printed."""
    monkeypatch.setenv("CAR_VLLM_MLX_PROGRESS", "0")
    if multimodal:
        fake.take_media()
    fake.switch(token_gate=fake.gate("token"))
    with subprocess.Popen(
        [sys.executable, "-c", ENDS_WITH_A_STREAM_OPEN, str(fake.model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ended\n"
        directory = fake.directory()
        eventually(lambda: not requesters(directory.clients), "the end of the requests")
        eventually(lambda: not live_tickets(directory), "the end of the tickets")
        assert stop_server(directory, force=False, policy=FAST)
        assert not program.communicate(timeout=PATIENCE)[1]


CALLS_AFTER_A_STREAM = """
import asyncio, gc, sys
from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model=sys.argv[1], max_tokens=3)
async def first_word():
    async for part in model.astream("hi"):
        return part.text
async def gathered():
    await asyncio.gather(first_word())
async def grouped():
    async with asyncio.TaskGroup() as group:
        group.create_task(first_word())
async def waited_for():
    await asyncio.wait_for(first_word(), 60)
async def answered():
    gc.collect()
    await model.ainvoke("hi")
    return "".join([part.text async for part in model.astream("hi")])
for way in (gathered, grouped, waited_for) * 3:
    asyncio.run(way())
    assert asyncio.run(answered()) == "tok0 tok1 tok2 "
"""


@pytest.mark.parametrize("multimodal", [False, True])
def test_call_in_a_later_loop_is_not_harmed_by_a_stream_that_was_left(
    fake: Fake, multimodal: bool, monkeypatch: pytest.MonkeyPatch
):
    """It is closed before its loop is, and not by the collector in the midst of another call."""
    monkeypatch.setenv("CAR_VLLM_MLX_PROGRESS", "0")
    if multimodal:
        fake.take_media()
    done = subprocess.run(
        [sys.executable, "-c", CALLS_AFTER_A_STREAM, str(fake.model)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")


CLOSES_A_LOOP = """
import asyncio, gc, sys
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server.client.process_lease import process_leases
model = ChatVllmMlx(model=sys.argv[1], max_tokens=3)
async def streamed():
    async for _ in model.astream("hi"):
        pass
async def invoked():
    await model.ainvoke("hi")
for way in (streamed, invoked):
    loop = asyncio.new_event_loop()
    task = loop.create_task(way())
    while not (process_leases() and process_leases()[0].holders):
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    del task, loop
    for _ in range(3):
        gc.collect()
"""


@pytest.mark.parametrize("multimodal", [False, True])
def test_tasks_of_a_closed_loop_are_collected_in_silence(
    fake: Fake, multimodal: bool, monkeypatch: pytest.MonkeyPatch
):
    """Python says that they were pending, and LangChain may fail; nothing of ours does."""
    monkeypatch.setenv("CAR_VLLM_MLX_PROGRESS", "0")
    if multimodal:
        fake.take_media()
    fake.switch(token_gate=fake.gate("token"))
    done = subprocess.run(
        [sys.executable, "-c", CLOSES_A_LOOP, str(fake.model)],
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "different Context" not in done.stderr
    assert "already running" not in done.stderr
