"""What the wire promises, on the real server: grammars, forced calls, stop texts, company."""

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import directory_of
from langchain_car_vllm.server.state import read_state
from langchain_car_vllm.wire.errors import InvalidRequestError


class Weather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=20)
    sunny: bool


class Look(BaseModel):
    """Look the weather of a city up."""

    city: str = Field(max_length=20)


class Add(BaseModel):
    """Add two numbers."""

    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


@pytest.fixture(params=["batched", "simple"])
def model(request: pytest.FixtureRequest, chat: Callable[..., ChatVllmMlx]) -> ChatVllmMlx:
    """SmolLM2 on each engine."""
    return chat(engine=request.param, max_tokens=80)


def test_grammars_stay_with_their_requests(model: ChatVllmMlx):
    """After plain requests and among them, a constrained answer fits and a plain one stays text."""
    model.invoke("Say hello.", max_tokens=3)
    structured = model.with_structured_output(Weather)
    assert structured.invoke("It is sunny in Paris.").city
    with ThreadPoolExecutor(4) as threads:
        plain = [threads.submit(model.invoke, "Tell me of dogs.", max_tokens=24) for _ in range(2)]
        fitting = [
            threads.submit(structured.invoke, f"It is sunny in {c}.") for c in ("Rome", "Bonn")
        ]
        assert all(isinstance(call.result(), Weather) for call in fitting)
        assert not any(call.result().text.startswith("{") for call in plain)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_forced_call_is_a_call(model: ChatVllmMlx, streamed: bool):
    """A model that cannot call tools by itself calls one all the same."""
    bound = model.bind_tools([Look, Add], tool_choice="any")
    if streamed:
        chunks = list(bound.stream("How is the weather in Paris?"))
        calls = [call for chunk in chunks for call in chunk.tool_call_chunks]
    else:
        calls = bound.invoke("How is the weather in Paris?").tool_calls
    assert {call["name"] for call in calls if call["name"]} <= {"Look", "Add"}
    assert calls


def test_a_stop_text_ends_the_answer(model: ChatVllmMlx):
    """On both engines, streamed or not."""
    whole = model.invoke("Say hello.", max_tokens=12).text
    stop = whole.split()[2]
    expected = whole[: whole.index(stop)]
    assert model.invoke("Say hello.", max_tokens=12, stop=[stop]).text == expected
    parts = model.stream("Say hello.", max_tokens=12, stop=[stop])
    assert "".join(part.text for part in parts) == expected


def test_the_servers_tokenizer_counts(model: ChatVllmMlx):
    """Once a call has found the server."""
    model.invoke("Say hello.", max_tokens=1)
    assert model.get_num_tokens("Hello there") == 2


@pytest.mark.parametrize("way", ["ainvoke", "astream", "stream"])
def test_leaving_a_call_ends_the_generation(model: ChatVllmMlx, way: str):
    """A cancelled task and a closed stream free the server, which has begun a long answer."""
    story = "Tell me a long story of a dog and a cat who travel around the world."
    model.invoke("Say hello.", max_tokens=1)
    before = _requests(model)

    async def cancelled() -> None:
        stream = model.astream(story, max_tokens=2000)
        call = model.ainvoke(story, max_tokens=2000) if way == "ainvoke" else anext(stream)
        task = asyncio.ensure_future(call)
        while _requests(model) == before:  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    if way == "stream":
        parts = model.stream(story, max_tokens=2000)
        next(parts)
        parts.close()
    else:
        asyncio.run(cancelled())
    began = time.monotonic()
    assert model.invoke("Say hello.", max_tokens=1).usage_metadata
    assert time.monotonic() - began < 30
    assert _requests(model) == before + 2
    while _under_way(model):
        assert time.monotonic() - began < 30
        time.sleep(0.05)


def _requests(model: ChatVllmMlx) -> int:
    """Return how many chat requests have reached the server."""
    log = directory_of(model._spec(engine=model.engine)).log
    return log.read_text(encoding="utf-8", errors="replace").count("POST /v1/chat/completions st")


def _under_way(model: ChatVllmMlx) -> list[str]:
    """Return the requests that the batched engine is at work on."""
    state = read_state(directory_of(model._spec(engine=model.engine)).state)
    assert state is not None
    connection = http.client.HTTPConnection("127.0.0.1", state.port, timeout=30)
    headers = {"Authorization": f"Bearer {state.api_key}"}
    connection.request("GET", "/v1/status", headers=headers)
    found = json.loads(connection.getresponse().read())["requests"]
    connection.close()
    return found


def test_the_servers_words_reach_the_user(model: ChatVllmMlx):
    """A limit of the server's is told in its own words."""
    with pytest.raises(InvalidRequestError, match="exceeds server limit"):
        model.invoke("Say hello.", max_tokens=40_000)
