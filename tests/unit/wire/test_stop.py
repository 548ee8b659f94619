"""Stop texts end the answer and never reach the user, not even in part."""

import pytest
from fakes.reply import Reply
from hypothesis import given as over
from hypothesis import strategies as st

from langchain_car_vllm.endpoint import Endpoint, Parsers
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.stop_texts import StopFilter
from langchain_car_vllm.wire.exchange.strategy import exchange_for

SIMPLE = Endpoint("http://127.0.0.1:9/v1", None, "m", engine="simple", parsers=Parsers())


@over(st.lists(st.text("abc", max_size=4)), st.lists(st.text("abc", min_size=1), min_size=1))
def test_an_answer_ends_before_the_first_stop_text(pieces, stop):
    """However the text is cut, the result is the text up to the first stop text."""
    cutter = StopFilter(stop)
    passed = [cutter.feed(Delta(piece)) for piece in pieces] + cutter.end("stop")
    text = "".join(pieces)
    places = [text.find(s) for s in stop if s in text]
    # A shorter stop text can complete before a longer one that begins earlier.
    expected = text[: min(places)] if places else text
    got = "".join(delta.text for delta in passed if delta)
    assert got == expected or (places and text.startswith(got) and not any(s in got for s in stop))
    assert cutter.done is bool(places)


@pytest.mark.parametrize("engine", ["simple", "batched"])
@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("stop", [["you"], "you", ["zzz", "you"], ["y", "you"]])
def test_stop_is_enforced_here(serve, engine, way, stop):
    """A string or a list, at construction or in the call; the server gets a list or nothing."""
    reply = Reply(pieces=["Hello ", "my friend, y", "ou", " and", " more"])
    for fields, given in (({"stop": stop}, {}), ({}, {"stop": stop})):
        model, dialect = serve(reply, dialect={"engine": engine}, **fields)
        if way == "invoke":
            answer = model.invoke("hi", **given)
        else:
            chunks = list(model.stream("hi", **given))
            answer = chunks[0]
            for chunk in chunks[1:]:
                answer += chunk
        assert answer.content.startswith("Hello m")
        assert "you" not in answer.content
        assert answer.response_metadata["finish_reason"] == "stop"
        assert isinstance(dialect.requests[0].get("stop", []), list)


def test_generation_ends_at_the_server_once_the_stop_text_came(serve):
    """The batched engine ignores `stop`: the connection is closed, and the usage is a guess."""
    model, dialect = serve(Reply(text="one two three " * 200, pause=0.005))
    answer = model.invoke("hi", stop=["three"])
    assert answer.content == "one two "
    assert answer.response_metadata["usage_estimated"] is True
    assert answer.usage_metadata["output_tokens"] == 3
    assert "stop" not in dialect.requests[0]


def test_the_simple_engine_is_told_where_it_heeds_only_the_answer():
    """It would also stop in its thoughts and in the arguments of a call."""
    messages = [{"role": "user", "content": "hi"}]

    def sent(endpoint, **given):
        exchange = exchange_for(endpoint, messages, ["x"], given, streamed=True)
        return next(iter(exchange.attempts())).body.get("stop")

    thinking = Endpoint(**{**_fields(SIMPLE), "parsers": Parsers(reasoning="qwen3")})
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert sent(SIMPLE) == ["x"]
    assert sent(thinking) is None
    assert sent(SIMPLE, tools=tools) is None


def test_the_usage_is_kept_where_the_server_ends_by_itself():
    """A server that was told sends the stop text and its usage; one that goes on is cut off."""
    cutter = StopFilter(["you"], told=True)
    assert cutter.feed(Delta("one you")) == Delta("one ")
    assert not cutter.done
    assert cutter.feed(Delta(" and me")) is None
    assert cutter.done


def test_reasoning_is_not_cut(serve):
    """Stop texts end the answer, not the thought before it."""
    model, _ = serve(Reply(thought="you and me", text="we you"))
    answer = model.invoke("hi", stop=["you"])
    assert answer.additional_kwargs["reasoning_content"] == "you and me"
    assert answer.content == "we "


def _fields(endpoint):
    return {name: getattr(endpoint, name) for name in Endpoint.__slots__}


def test_stop_holds_in_reasoning_that_becomes_the_answer(serve):
    """A parser that takes the whole answer for reasoning does not let the stop text through."""
    model, _ = serve(Reply(thought="answer END secret"))
    assert model.invoke("hi", stop=["END"]).content == "answer "


def test_an_answer_that_is_stopped_at_once_is_no_lost_one(serve, recwarn):
    """Nobody is told to raise `max_tokens`."""
    model, _ = serve(Reply(thought="hm", text="\nanswer"))
    assert model.invoke("hi", stop=["\n"]).content == ""
    assert not list(recwarn)
