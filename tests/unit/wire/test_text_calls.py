"""Calls written as text become calls, however they are cut; other text stays what it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.text_calls import TextCallFilter

CALL = {"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}
TEXT = json.dumps(CALL)
CALLS = [
    TEXT,
    f"\n{TEXT}\n",
    f"```json\n{TEXT}\n```",
    f"```\n{json.dumps(CALL, indent=2)}\n```\n",
    f"<tool_call>\n{TEXT}\n</tool_call>",
    f"<tool_call>{TEXT}",
    f"```json\n{TEXT}",
    json.dumps({"type": "function", "function": CALL}),
    json.dumps({"name": "add", "parameters": CALL["arguments"]}),
    json.dumps({"name": "add", "arguments": json.dumps(CALL["arguments"])}),
    json.dumps([CALL]),
]
TEXTS = [
    "Hello there",
    "A set is written {1, 2}.",
    "{not json}",
    "[link](https://example.org) and [more]",
    '{"city": "Paris", "name": "add"}',
    '{"name": "unknown", "arguments": {}}',
    '{"name": "add"}',
    "```python\nprint({'name': 'add'})\n```\nThat was code.",
    '```json\n{"city": "Paris"}\n```\n',
    "``` is a fence",
    "a `b` and ``c``",
    "if x <tool> 3 < 4",
    "<tool_call>nonsense</tool_call>",
    "[1, 2, 3]",
    "{",
    "```",
    "  \n\n  ",
    '```json\n{"name": "other", "arguments": {}}\n```',
]


def run(pieces, names=("add",)):
    """Return the text and the calls that come out."""
    holdback = TextCallFilter(names)
    passed = [holdback.feed(Delta(piece)) for piece in pieces] + [holdback.end("stop")]
    deltas = [delta for delta in passed if delta]
    calls = [(c["name"], json.loads(c["args"])) for delta in deltas for c in delta.calls]
    return "".join(delta.text for delta in deltas), calls


@pytest.mark.parametrize("text", CALLS)
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_a_call_in_any_form_becomes_the_call(text, cut):
    """Whether it comes whole or letter by letter."""
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert run(pieces) == ("", [("add", CALL["arguments"])])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_other_text_stays_as_it_is(text, cut):
    """Not a letter is lost or added."""
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert run(pieces) == (text, [])


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_text_before_calls_stays_and_calls_may_follow_each_other(cut):
    """A sentence, then two calls."""
    text = f"I will add.\n\n```json\n{TEXT}\n```\n{TEXT}\n"
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert run(pieces) == ("I will add.", [("add", CALL["arguments"])] * 2)


def test_ordinary_text_is_not_delayed():
    """Only what begins like a call waits."""
    holdback = TextCallFilter(["add"])
    passed = [holdback.feed(Delta(piece)) for piece in ("Hello", " there", ", you")]
    assert [delta.text for delta in passed if delta] == ["Hello", " there", ", you"]


def test_foreign_json_and_code_flow_on_at_once():
    """An answer that is JSON but no call is let go at its first key, code at its first line."""
    holdback = TextCallFilter(["add"])
    assert holdback.feed(Delta('{"city')) is None
    assert holdback.feed(Delta('": "Par')) == Delta('{"city": "Par')
    holdback = TextCallFilter(["add"])
    assert holdback.feed(Delta("```python\nx = 1")) == Delta("```python\nx = 1")


def test_a_call_of_the_servers_after_a_written_one_is_a_call_of_its_own():
    """Both count from 0, and LangChain would merge what has one number."""
    holdback = TextCallFilter(["add"])
    native = {"name": "add", "args": '{"a": 2}', "id": "1", "index": 0, "type": "tool_call_chunk"}
    written = holdback.feed(Delta('{"name": "add", "arguments": {"a": 1}}'))
    found = [*written.calls, *holdback.feed(Delta(calls=(native,))).calls]
    assert [(chunk["index"], chunk["args"]) for chunk in found] == [
        (0, '{"a": 1}'),
        (1, '{"a": 2}'),
    ]


def test_text_beside_calls_that_the_server_found_is_text():
    """Once the server's own parser works, JSON in the text is not turned into a second call."""
    holdback = TextCallFilter(["add"])
    chunk = {"name": "add", "args": "{}", "id": "1", "index": 0, "type": "tool_call_chunk"}
    assert holdback.feed(Delta(calls=(chunk,))) == Delta(calls=(chunk,))
    assert holdback.feed(Delta(TEXT)) == Delta(TEXT)


@given(st.lists(st.sampled_from([*'{}[]`<>\n "a:,t', "tool_call", "name", "```", "json", "add"])))
def test_no_text_is_ever_lost(pieces):
    """Whatever is no call comes out as it went in."""
    text, calls = run(pieces)
    assert calls or text == "".join(pieces)
