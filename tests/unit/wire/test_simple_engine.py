"""The simple engine of somebody else's server, which answers one request at a time."""

import asyncio
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from langchain_core.output_parsers import StrOutputParser

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.wire.errors import (
    ServerFailedError,
)


class SimpleEngine(Dialect):
    """A plain `vllm-mlx serve`: a second request fails in its stream, a cut answer goes on."""

    def __init__(self) -> None:
        super().__init__(engine="simple", script=self.script_of)
        self.busy_until = 0.0
        self.running = 0
        self.refused = 0

    def script_of(self, body):
        return Reply(text="one two three", pause=0.02)

    def _events(self, reply, body):
        with self._lock:
            is_busy = self.running or time.monotonic() < self.busy_until
            self.refused += bool(is_busy)
            self.running += not is_busy
        if is_busy:
            error = {"error": {"message": "Internal server error", "code": 500}}
            yield b"data: " + json.dumps(error).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            return
        try:
            yield from super()._events(reply, body)
        except GeneratorExit:
            self.busy_until = time.monotonic() + 1.5
            raise
        finally:
            with self._lock:
                self.running -= 1


@pytest.mark.parametrize("way", ["batch", "abatch"])
def test_a_plain_server_answers_a_batch_and_survives_a_stop(way: str):
    """The requests of this process wait for their turn, and a busy engine is asked again."""
    dialect = SimpleEngine()
    with Server(dialect) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        if way == "batch":
            answers = model.batch(["hi"] * 4)
            answers += [model.invoke("hi", stop=["two"]), model.invoke("hi")]
        else:
            answers = asyncio.run(ask_all(model))
        texts = [answer.text.strip() for answer in answers]
        assert texts == ["one two three"] * 4 + ["one", "one two three"]
        for _ in model.stream("hi"):  # within a stream nothing waits for itself
            assert model.bind(timeout=60).invoke("hi").text.strip() == "one two three"


def _invoked(model: ChatVllmMlx) -> list[str]:
    return [model.invoke("hi").text for _ in itertools.islice(model.stream("hi"), 2)]


def _batched(model: ChatVllmMlx) -> list[str]:
    parts = itertools.islice(model.stream("hi"), 1)
    return [answer.text for _ in parts for answer in model.batch(["hi"] * 3)]


def _ainvoked(model: ChatVllmMlx) -> list[str]:
    async def ask() -> list[str]:
        return [(await model.ainvoke("hi")).text async for _ in model.astream("hi")]

    return asyncio.run(ask())


def _abatched(model: ChatVllmMlx) -> list[str]:
    async def ask() -> list[str]:
        texts: list[str] = []
        async for _ in model.astream("hi"):
            texts = texts or [answer.text for answer in await model.abatch(["hi"] * 3)]
        return texts

    return asyncio.run(ask())


def _invoked_in_a_thread(model: ChatVllmMlx) -> list[str]:
    async def ask() -> list[str]:
        texts: list[str] = []
        async for _ in model.astream("hi"):
            texts = texts or [(await asyncio.to_thread(model.invoke, "hi")).text]
        return texts

    return asyncio.run(ask())


def _invoked_within_a_chain(model: ChatVllmMlx) -> list[str]:
    parts = (model | StrOutputParser()).stream("hi")
    return [model.invoke("hi").text for _ in itertools.islice(parts, 2)]


def _invoked_in_a_context(model: ChatVllmMlx) -> list[str]:
    parts = itertools.islice(model.stream("hi"), 2)
    return [Context().run(model.invoke, "hi").text for _ in parts]


@pytest.mark.parametrize(
    "ask",
    [
        _invoked,
        _batched,
        _ainvoked,
        _abatched,
        _invoked_in_a_thread,
        _invoked_within_a_chain,
        _invoked_in_a_context,
    ],
)
def test_a_call_within_an_answer_waits_for_the_engine_and_not_for_itself(ask):
    """In whatever task or thread it is made; several take turns among themselves."""
    dialect = SimpleEngine()
    with Server(dialect) as server:
        texts = ask(ChatVllmMlx(model="m", base_url=server.base_url))
    assert texts
    assert {text.strip() for text in texts} == {"one two three"}


def test_streams_whose_steps_one_thread_takes_are_all_answered():
    """As in a web application: the engine is asked again until the answer before is sent."""
    dialect = SimpleEngine()
    with Server(dialect) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url, max_retries=0)
        streams = [model.stream("hi") for _ in range(3)]
        steps = [partial(copy_context().run, next, stream, None) for stream in streams]
        texts = [""] * len(steps)
        with ThreadPoolExecutor(1) as thread:
            for number in itertools.chain.from_iterable(itertools.repeat(range(len(steps)), 9)):
                part = thread.submit(steps[number]).result()
                texts[number] += part.text if part else ""
    assert [text.strip() for text in texts] == ["one two three"] * 3


def test_an_engine_that_stays_busy_is_told_with_the_cures():
    """Somebody else's long answer is not waited for longer than `max_retries` says."""
    dialect = SimpleEngine()
    dialect.busy_until = time.monotonic() + 600
    with Server(dialect) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url, max_retries=1)
        with pytest.raises(ServerFailedError, match="--continuous-batching"):
            model.invoke("hi")
    assert dialect.refused == 2


async def ask_all(model: ChatVllmMlx) -> list:
    """Ask as a program with tasks would."""
    answers = await model.abatch(["hi"] * 4)
    return [*answers, await model.ainvoke("hi", stop=["two"]), await model.ainvoke("hi")]
