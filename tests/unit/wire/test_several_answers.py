"""Several answers to one request: the first of them is read, and no other is asked for."""

import json
from typing import Any

import pytest
from fakes.calls import ways
from fakes.reply import Reply
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.wire.events import part, stream

from langchain_car_vllm.wire.answer.reader import Answer


def parts_of(index: int) -> list[dict[str, Any]]:
    """Return the parts of one of several answers: a text, a thought, a call and an end."""
    call = {"index": 0, "id": f"{index}", **part("now", f'{{"a": {index}}}')}
    return [
        {"index": index, "delta": {"content": f"text {index}", "reasoning": f"thought {index}"}},
        {"index": index, "delta": {"tool_calls": [call]}},
        {"index": index, "delta": {}, "finish_reason": f"reason {index}"},
    ]


@settings(deadline=None, max_examples=50)
@given(st.permutations([0, 1, 2] * 3), st.booleans(), st.booleans())
def test_of_several_answers_one_is_read(order, is_joined, is_bare):
    """The first, in whatever order the parts come; its number may be left out."""
    parts = {index: iter(parts_of(index)) for index in range(3)}
    events = [[next(parts[index])] for index in order]
    if is_joined:  # each event tells of all
        turns = list(dict.fromkeys(order))
        events = [[parts_of(index)[at] for index in turns] for at in range(3)]
    if is_bare:
        for choice in (choice for event in events for choice in event if not choice["index"]):
            del choice["index"]
    answer = Answer(streamed=True)
    deltas = answer.feed(stream(*({"choices": event} for event in events)).raw)
    deltas += answer.with_logprobs(answer.end())
    assert "".join(delta.text for delta in deltas) == "text 0"
    assert "".join(delta.thought for delta in deltas) == "thought 0"
    assert "".join(call["args"] or "" for delta in deltas for call in delta.calls) == '{"a": 0}'
    assert answer.finish_reason == "reason 0"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("way", ["call", "bind", "model_kwargs", "extra_body", "setting"])
@pytest.mark.filterwarnings("ignore:vllm-mlx ignores `n`")
def test_who_asks_for_several_answers_gets_one(serve, way, first):
    """By whatever way, and of a server that sends several all the same, in whatever order."""

    def script(body):
        numbers = (first, 1 - first)
        if body.get("stream"):
            events = [{"index": i, "delta": {"content": f"text {i}"}} for i in numbers]
            ends = [{"index": i, "delta": {}, "finish_reason": "stop"} for i in numbers]
            return stream(*({"choices": [choice]} for choice in (*events, *ends)))
        choices = [
            {"index": i, "message": {"content": f"text {i}"}, "finish_reason": "stop"}
            for i in numbers
        ]
        return Reply(raw=json.dumps({"choices": choices}).encode())

    fields: dict[str, dict[str, Any]] = {
        "model_kwargs": {"model_kwargs": {"n": 2}},
        "extra_body": {"extra_body": {"n": 2}},
        "setting": {"n": 2},
    }
    model, dialect = serve(script, **fields.get(way, {}))
    bound = model.bind(n=2) if way == "bind" else model
    given = {"n": 2} if way == "call" else {}
    for name, message in ways(bound, "go", **given).items():
        assert (message.text, message.response_metadata["finish_reason"]) == ("text 0", "stop"), (
            name
        )
    assert all("n" not in body for body in dialect.requests)


@pytest.mark.parametrize("given", [{"n": 2}, {"extra_body": {"n": 2}}])
def test_a_wish_for_several_answers_is_answered_with_how_to_get_them(serve, given):
    """Once, and the same by every way."""
    model, _ = serve(Reply(text="yes"))
    with pytest.warns(UserWarning, match="ignores `n`.*`batch"):
        assert model.invoke("go", **given).text == "yes"
