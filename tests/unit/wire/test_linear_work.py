"""Reading an answer costs what it is long, in however many events it comes."""

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from langchain_car_vllm.wire.answer.reader import Answer
from langchain_car_vllm.wire.answer.stop_texts import StopFilter
from langchain_car_vllm.wire.answer.text_calls import TextCallFilter
from langchain_car_vllm.wire.answer.think_tags import ThinkTagFilter
from langchain_car_vllm.wire.answer.written_calls import CallNames
from langchain_car_vllm.wire.errors import AnswerError

Lines = Callable[[int], list[bytes]]
FEW, MANY = 1000, 2000


def event(*choices: dict[str, Any]) -> bytes:
    """Return a line of a stream."""
    return b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"


def texts(first: str, piece: str) -> Lines:
    """Return a stream of a text whose second part comes again and again."""
    pieces = lambda count: [first, *[piece] * count]  # noqa: E731
    return lambda count: [event({"index": 0, "delta": {"content": p}}) for p in pieces(count)]


def calls(first: str, *pieces: str, **more: Any) -> Lines:
    """Return a stream of arguments of a call, each part with what is told of the call again."""

    def lines(count: int) -> list[bytes]:
        parts = [first, *(pieces * (count // len(pieces)))]
        functions = [{"name": "f", "arguments": part} for part in parts]
        told = [{"tool_calls": [{"index": 0, "function": f, **more}]} for f in functions]
        return [event({"index": 0, "delta": delta}) for delta in told]

    return lines


STREAMS: dict[str, Lines] = {
    **{run: texts("", run) for run in ("{", "{ ", "[", "`", " ", "\n", "<tool_", "STO", "\ud83d")},
    "a call's text": texts('{"name": "f", "arguments": {"a": "', "word "),
    "a call's objects": texts('{"name": "f", "arguments": {"a": [', '{"b": 1}, '),
    "a call in doubled braces": texts('{{"name": "f", "arguments": {{"a": "', "word "),
    "a call in a fence": texts('```json\n{"name": "f", "arguments": {"a": "', "word "),
    "a call in a tag": texts('<tool_call>{"name": "f", "arguments": {"a": "', "word "),
    "blanks in a tag": texts("<tool_call>", " "),
    "a fence in a tag": texts("<|python_tag|>```", "x"),
    "code": texts("```python\n", "x = 1\n"),
    "blanks in code": texts("```python\n", " "),
    "text behind a call": texts('{"name": "f", "arguments": {}}', "word "),
    "braces behind a call": texts('{"name": "f", "arguments": {}}', "} "),
    "a thought": texts("<think>", "word "),
    "breaks in a thought": texts("<think>", "\n"),
    "breaks behind a thought": texts("<think>word", "\n"),
    "ends of a thought": texts("<think>", "</thin"),
    "a named call": calls('{"a": "', "word ", id="1"),
    "a call without an id": calls('{"a": "', "word "),
    "objects of a named call": calls('{"a": [', "{}", ",", id="1"),
    "blanks of a call": calls("", " "),
    "calls": lambda count: [
        event({"delta": {"tool_calls": [{"index": n, "id": str(n), "function": {"name": "f"}}]}})
        for n in range(count)
    ],
    "calls without an index": lambda count: [
        event({"delta": {"tool_calls": [{"id": str(n), "function": {"name": "f"}}]}})
        for n in range(count)
    ],
    "answers": lambda count: [event(*({"index": n, "delta": {}} for n in range(count)))],
    "lines of one event": lambda count: [b'data: {"choices": [\n', *[b"data:  \n"] * count],
    "parts of one line": lambda count: [b"data: ", *[b" "] * count],
    "calls in one text": lambda count: [
        event({"delta": {"content": '{"name": "f", "arguments": {}}' * count}})
    ],
}


def work_of(lines: list[bytes]) -> int:
    """Return how many characters the functions of the answer's modules had in their hands."""
    work = 0

    def note(frame: FrameType, kind: str, returned: object) -> None:
        nonlocal work
        if kind == "return" and "/wire/answer/" in frame.f_code.co_filename:
            held = (*frame.f_locals.values(), returned)
            work += 1 + sum(len(value) for value in held if isinstance(value, str | bytes))

    filters = [ThinkTagFilter(), TextCallFilter(CallNames({"f": "f"})), StopFilter(["STOP"])]
    answer = Answer(streamed=True, filters=filters)
    sys.setprofile(note)
    try:
        for line in lines:
            answer.feed(line)
        answer.end()
    except AnswerError:
        pass  # an answer without an end
    finally:
        sys.setprofile(None)
    return work


@pytest.mark.parametrize("lines", STREAMS.values(), ids=[repr(name) for name in STREAMS])
def test_twice_as_much_is_twice_the_work(lines):
    """What is held back is not looked through again with each event."""
    assert work_of(lines(MANY)) < 3 * work_of(lines(FEW))
