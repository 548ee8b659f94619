"""Log probabilities: asked for, in OpenAI's form, whole and streamed, or a typed error."""

import asyncio
import json
from collections.abc import Iterator
from functools import reduce

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from hypothesis import given as over
from hypothesis import strategies as st
from langchain_core import exceptions as core
from pydantic import BaseModel
from unit.wire.events import stream

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server.supervisor.mends.logprobs import LogprobNotes
from langchain_car_vllm.wire.answer.reader import Answer
from langchain_car_vllm.wire.answer.stop_texts import StopFilter

WORDS = ["Hello", "there,", "my", "friend"]


@pytest.fixture
def server() -> Iterator[Server]:
    """A model that thinks, then says four words."""
    with Server(Dialect("m")) as running:
        yield running


@pytest.fixture
def llm(server: Server) -> ChatVllmMlx:
    """A chat model that asks it."""
    return ChatVllmMlx(model="m", base_url=server.base_url)


def added(chunks):
    return reduce(lambda left, right: left + right, chunks)


async def collect(stream):
    return [chunk async for chunk in stream]


def tokens(message) -> list[str]:
    return [entry["token"].strip() for entry in message.response_metadata["logprobs"]["content"]]


def test_they_come_as_from_openai_whole_and_streamed(llm, server):
    """Invoke, stream and their asynchronous twins tell the same, in the order of the tokens."""
    asking = llm.bind(logprobs=True, top_logprobs=2)
    chunks = list(asking.stream("hi"))
    answers = [
        asking.invoke("hi"),
        added(chunks),
        asyncio.run(asking.ainvoke("hi")),
        added(asyncio.run(collect(asking.astream("hi")))),
    ]
    for answer in answers:
        assert tokens(answer) == WORDS
        first = answer.response_metadata["logprobs"]["content"][0]
        assert first["logprob"] == -0.5
        assert bytes(first["bytes"]).decode() == first["token"]
        assert [entry["logprob"] for entry in first["top_logprobs"]] == [-0.5, -1.5]
    assert sum("logprobs" in chunk.response_metadata for chunk in chunks) == len(WORDS)
    assert server.dialect.requests[0]["top_logprobs"] == 2


def test_a_setting_asks_for_them_too_and_nobody_else_does(llm, server):
    """`top_logprobs` alone is enough, a call can turn both off."""
    assert "logprobs" not in llm.invoke("hi").response_metadata
    assert "logprobs" not in server.dialect.requests[0]
    setting = llm.model_copy(update={"top_logprobs": 1})
    assert tokens(setting.invoke("hi")) == WORDS
    off = setting.invoke("hi", logprobs=None, top_logprobs=None)
    assert "logprobs" not in off.response_metadata


def test_those_of_what_is_held_back_are_not_lost(llm, server):
    """Text that may be a call, or JSON that is checked, arrives late with all of its tokens."""

    def weather(city: str) -> str:
        """Tell the weather."""
        return city

    server.dialect.script = lambda body: Reply(text='{"name": "other", "x": 1} and more words')
    held = llm.bind_tools([weather]).bind(logprobs=True)
    assert len(tokens(added(held.stream("hi")))) == 7

    class Moon(BaseModel):
        name: str

    server.dialect.script = lambda body: Reply(text='{"name": "Titan the moon"}')
    found = llm.with_structured_output(Moon, include_raw=True, logprobs=True).invoke("hi")
    assert tokens(found["raw"]) == ['{"name":', '"Titan', "the", 'moon"}']


def told(*pieces: str) -> dict:
    """Return what an event tells of some tokens."""
    entries = [{"token": p, "logprob": -1.0, "bytes": [*p.encode()]} for p in pieces]
    return {"content": entries}


def said(text: str, *pieces: str, finish: str | None = None) -> dict:
    """Return an event with a text and tokens."""
    delta = {"content": text}
    choice = {"index": 0, "delta": delta, "logprobs": told(*pieces), "finish_reason": finish}
    return {"choices": [choice]}


@pytest.mark.parametrize(
    "events",
    [
        [said("one", "one"), said(" S", " S"), said("TOP", "TOP"), said(" two", " two")],
        [said("one ", "one", " ", "ST"), said("ST"), said("OP two", "OP", " two")],
        [said("one "), said("ST", "one", " "), said("OP two", "ST"), said("x", "OP")],
        [said("one STOP two", "one", " ", "STOP", " two", "<end>", finish="stop")],
        [said("one ", "one"), said("STO", " "), said("P", "STO", "P", "<end>")],
    ],
    ids=["split", "ahead", "behind", "whole", "ends"],
)
@pytest.mark.parametrize("has_tools", [False, True])
def test_those_of_a_stop_text_are_not_told(llm, server, events, has_tools):
    """A token that the stop text cuts in two is told, for a part of it was seen."""
    server.dialect.script = lambda body: stream(*events)
    asking = llm.bind_tools([{"name": "f", "description": "x"}]) if has_tools else llm
    for answer in (
        asking.invoke("hi", stop=["STOP"], logprobs=True),
        added(list(asking.stream("hi", stop=["STOP"], logprobs=True))),
    ):
        assert answer.text == "one "
        pieces = [entry["token"] for entry in answer.response_metadata["logprobs"]["content"]]
        assert pieces in (["one", " "], ["one", " S"])


@over(
    st.lists(st.text("abé", min_size=1, max_size=3), min_size=1, max_size=6),
    st.text("abé", min_size=1, max_size=3),
    st.integers(0, 2),
)
def test_tokens_and_text_end_together(pieces, stop, behind):
    """However events are cut, and however far tokens lag behind: what is told is what was seen."""
    answer = Answer(streamed=True, filters=[StopFilter([stop])], wants_logprobs=False)
    waiting = ["", *pieces]
    events = [said(text, *([waiting[n]] if n else [])) for n, text in enumerate([*pieces, ""])]
    if not behind:
        events = [said(piece, piece) for piece in pieces]
    seen, tokens = "", []
    for event in [*events, said("", finish="stop")]:
        for delta in answer.feed(b"data: " + json.dumps(event).encode() + b"\n\n"):
            seen += delta.text
            tokens += delta.logprobs
            assert behind or len(seen) >= len("".join(entry["token"] for entry in tokens))
    for delta in answer.with_logprobs(answer.end()):
        seen += delta.text
        tokens += delta.logprobs
    tokens += answer.last_logprobs()
    names = [entry["token"] for entry in tokens]
    assert names == pieces[: len(names)]
    before = "".join(names[:-1])
    assert seen.startswith(before)
    assert behind or "".join(names).startswith(seen)
    assert not names or len(before) < len(seen)


@pytest.mark.parametrize("odd", [5, None, 10**15, [300], ["x"], "text", {"a": 1}])
def test_odd_bytes_of_tokens_end_no_answer(llm, server, odd):
    """A token is known by its text where the bytes say nothing."""
    events = [said("one ", "one "), said("STOP", "STOP")]
    events[0]["choices"][0]["logprobs"]["content"][0]["bytes"] = odd
    server.dialect.script = lambda body: stream(*events)
    assert llm.invoke("hi", stop=["STOP"], logprobs=True).text == "one "


@pytest.mark.parametrize("kind", ["invoke", "stream"])
def test_a_server_without_them_is_a_typed_error(llm, server, kind):
    """A stream ends with its first text, before anything is seen of it."""
    server.dialect.tells_logprobs = False
    seen = []
    calls = {
        "invoke": lambda: llm.invoke("hi", logprobs=True),
        "stream": lambda: seen.extend(chunk.text for chunk in llm.stream("hi", logprobs=True)),
    }
    with pytest.raises(core.ModelInvalidRequestError, match="returns no log probabilities"):
        calls[kind]()
    assert "".join(seen) == ""


@pytest.mark.parametrize("sent", [5, [], {"content": [5]}, {"content": 5}, {"content": {"a": 1}}])
def test_odd_ones_are_a_typed_error(llm, server, sent):
    """Never an error of Python's own."""
    choice = {"index": 0, "delta": {"content": "x"}, "logprobs": sent, "finish_reason": "stop"}
    raw = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()
    server.dialect.script = lambda body: Reply(raw=raw)
    with pytest.raises((core.ModelAPIError, core.ModelInvalidRequestError)):
        list(llm.stream("hi", logprobs=True))


@pytest.mark.parametrize(
    "given",
    [
        {"top_logprobs": 21},
        {"top_logprobs": -1},
        {"top_logprobs": 1.5},
        {"logprobs": 3},
        {"logprobs": False, "top_logprobs": 2},
    ],
)
def test_what_has_no_sense_is_refused(llm, given):
    """In a call and at construction."""
    with pytest.raises(ConfigurationError, match="logprobs"):
        llm.invoke("hi", **given)
    with pytest.raises(ConfigurationError, match="logprobs"):
        ChatVllmMlx(model="org/model", **given)


class Pieces:
    """A byte-level tokenizer of six tokens; the last one ends an answer."""

    eos_token_id = 5
    pieces = ("Hi", "Ġthere", "ðŁ", "Ļ", "Ĥ", "<end>")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, ids: list[int]) -> str:
        text = self.pieces[ids[0]].replace("Ġ", " ")
        return text if text.isascii() else "\ufffd"


def test_the_notes_hold_every_token_with_its_bytes():
    """Each step tells the token of the one before; the end of the answer is not one of them."""
    numpy = pytest.importorskip("numpy", reason="the arithmetic of MLX is imitated with it")

    class Arithmetic:
        float32, array = numpy.float32, staticmethod(numpy.array)
        argsort, argpartition = staticmethod(numpy.argsort), staticmethod(numpy.argpartition)

        @staticmethod
        def logsumexp(row):
            return numpy.log(numpy.exp(row).sum())

    notes = LogprobNotes(Arithmetic, Pieces(), 2)
    logits = numpy.log(numpy.array([[0.5, 0.25, 0.1, 0.1, 0.05, 1e-9]]))
    context: list[int] = [3, 3, 3]
    for token in (1, 2, 3, 4, 5, 0):
        assert notes(numpy.array(context), logits) is logits
        context.append(token)
    notes(numpy.array(context), logits)
    found = notes.take()
    assert [entry["token"] for entry in found[:1]] == [" there"]
    assert len(found) == 4
    assert found[0]["logprob"] == pytest.approx(numpy.log(0.25), abs=1e-5)
    assert [entry["token"] for entry in found[0]["top_logprobs"]] == ["Hi", " there"]
    assert bytes(b for entry in found[1:] for b in entry["bytes"]).decode() == "\U0001f642"
    assert notes.take() == []
