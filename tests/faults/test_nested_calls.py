"""Calls that are made within an answer, whose end waits for them: they wait for others only."""

import asyncio
import json
import time
from contextlib import aclosing, closing

import pytest
from fakes.published_configs import CONFIGS
from fakes.weights import write_sparse_weights
from faults.support import FAST, Background, Fake, eventually
from langchain_core.messages import AIMessage

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import InsufficientMemoryError
from langchain_car_vllm.server.client import lease

ANSWER = "tok0 tok1 tok2 "
LONG, SHORT = "word " * 12999, "hello"
ROOM = "waiting for memory that other requests use"


@pytest.fixture
def llm(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> ChatVllmMlx:
    """Qwen3-8B at 4 bits on a Mac with 16 GB, whose server has memory for two short prompts."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "11.45")
    monkeypatch.setattr(lease, "policy_from_environment", lambda: FAST)
    (fake.model / "config.json").write_text(json.dumps(CONFIGS["Qwen3-8B"]))
    write_sparse_weights(fake.model / "model.safetensors", 4_600_000_000)
    return ChatVllmMlx(model=str(fake.model), max_tokens=3, max_retries=0)


def nested(llm: ChatVllmMlx, outer: str, inner: str) -> list[str]:
    with closing(llm.stream(outer)) as parts:
        return [llm.invoke(inner).text for part in parts if part.text == "tok0 "]


async def anested(llm: ChatVllmMlx, outer: str, inner: str) -> list[str]:
    texts: list[str] = []
    async with aclosing(llm.astream(outer)) as parts:
        async for part in parts:
            if part.text == "tok0 ":
                texts += [answer.text for answer in await llm.abatch([inner] * 2)]
    return texts


def test_a_call_within_an_answer_is_let_in_where_one_is_answered_at_a_time(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    """The server answers one after the other by itself."""
    monkeypatch.setenv("CAR_VLLM_MLX_MAX_QUEUE", "8")
    llm = ChatVllmMlx(model=str(fake.model), max_tokens=3, engine="simple")
    assert nested(llm, SHORT, SHORT) == [ANSWER]
    assert asyncio.run(anested(llm, SHORT, SHORT)) == [ANSWER] * 2


def test_a_call_within_an_answer_does_not_wait_behind_those_that_wait_for_that_answer(
    fake: Fake, llm: ChatVllmMlx
):
    """Somebody with a long prompt waits for room; nobody would ever come further."""
    told: list[str | None] = []
    waiter = ChatVllmMlx(
        model=str(fake.model), max_tokens=3, on_progress=lambda p: told.append(p.detail)
    )
    waiting: Background[str] | None = None
    for part in llm.stream(SHORT):
        if part.text == "tok0 ":
            waiting = Background(lambda: waiter.invoke(LONG).text)
            eventually(lambda: ROOM in told, "the wait to be told")
            assert llm.invoke(SHORT).text == ANSWER
            assert [answer.text for answer in llm.batch([SHORT] * 3)] == [ANSWER] * 3
    assert waiting is not None
    assert waiting.result() == ANSWER


@pytest.mark.parametrize("inner", [LONG, SHORT])
def test_a_call_within_an_answer_that_leaves_no_room_is_refused(llm: ChatVllmMlx, inner: str):
    """It would wait for itself; a batch is as wide as its longest row, so a short one too."""
    with pytest.raises(InsufficientMemoryError, match="that it is made in") as caught:
        nested(llm, LONG, inner)
    assert caught.value.is_retryable
    with pytest.raises(InsufficientMemoryError, match="that it is made in"):
        asyncio.run(anested(llm, LONG, inner))
    assert llm.invoke(inner).text == ANSWER


def test_a_call_waits_for_an_answer_that_is_read_on(fake: Fake, llm: ChatVllmMlx):
    """A task that is begun within an answer is not what that answer waits for."""
    fake.switch(token_pause=0.1)
    reading = ChatVllmMlx(model=str(fake.model), max_tokens=20)

    async def use() -> str:
        begun: asyncio.Future[AIMessage] | None = None
        async for _ in reading.astream(LONG):
            begun = begun or asyncio.ensure_future(llm.ainvoke(SHORT))
        assert begun is not None
        return (await begun).text

    began = time.monotonic()
    assert asyncio.run(use()) == ANSWER
    assert time.monotonic() - began > 3 * FAST.own_memory
