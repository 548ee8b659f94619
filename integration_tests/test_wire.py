"""What the wire promises, on the real server: grammars, forced calls, stop texts, company."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
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


def test_the_servers_words_reach_the_user(model: ChatVllmMlx):
    """A limit of the server's is told in its own words."""
    with pytest.raises(InvalidRequestError, match="exceeds server limit"):
        model.invoke("Say hello.", max_tokens=10**6)
