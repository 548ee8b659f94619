"""One answer, whole and cut into a stream as this or that server cuts it, is one message."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGenerationChunk

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.result import last_chunk, to_chunk, to_result
from langchain_car_vllm.wire.exchange.strategy import exchange_for
from langchain_car_vllm.wire.request.tools import server_name

ENDPOINT = Endpoint("http://127.0.0.1:9/v1", None, "m")
CALL = json.dumps({"name": "add", "arguments": {"a": 1}})
WORDS = [
    *(
        "Hello ",
        "I will add. ",
        "\n",
        " ",
        "}",
        "{",
        "```",
        "`",
        "<think>",
        "</think>",
        "😀",
        "END",
    ),
    *(CALL, CALL[:-1], f"<tool_call>{CALL}</tool_call>", f"```json\n{CALL}\n```", "<tool_call>"),
    *(f"[TOOL_CALLS][{CALL}]", '{"city": "Paris"}', '{"name": "other", "arguments": {}}'),
]
texts = st.lists(st.sampled_from(WORDS), max_size=5).map("".join)
names = st.sampled_from(["add", "now", server_name("a.b")])
arguments = st.sampled_from(
    ['{"a": 1}', "{}", "", "null", '{"a": "}"}', '{"a": ', "nonsense", "[]"]
)
calls = st.lists(st.tuples(names, arguments), max_size=3)


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("add"), tool("now"), tool("a.b")]


@st.composite
def pieces(draw: Any, text: str) -> list[str]:
    places = draw(st.lists(st.integers(0, len(text)), max_size=4)) if text else []
    edges = [0, *sorted(places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def whole(thought: str, text: str, made: list[tuple[str, str]], reason: str) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if thought:
        message["reasoning_content"] = thought
    if made:
        message["tool_calls"] = [
            {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": args}}
            for n, (name, args) in enumerate(made)
        ]
    choice = {"index": 0, "message": message, "finish_reason": reason}
    usage = {"prompt_tokens": 4, "completion_tokens": 5}
    return json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode()


@st.composite
def streams(draw: Any, thought: str, text: str, made: list[tuple[str, str]], reason: str) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": part} for part in draw(pieces(thought))]
    said = [{"content": part} for part in draw(pieces(text))]
    numbering = draw(st.sampled_from(["index", "one index", "none"]))
    called: list[dict[str, Any]] = []
    for n, (name, args) in enumerate(made):
        place = {"index": {"index": n}, "one index": {"index": 0}, "none": {}}[numbering]
        repeats = draw(st.booleans())
        parts: list[dict[str, str]] = [{"arguments": part} for part in draw(pieces(args))]
        if draw(st.booleans()):
            parts = [*({"name": part} for part in draw(pieces(name)) if part), *parts]
        else:
            parts[0]["name"] = name
        for number, part in enumerate(parts):
            entry = {**place, "function": part}
            if not number or repeats:
                entry["id"] = f"c{n}"
            called.append({"tool_calls": [entry]})
    # A thought stands at the beginning, and so do its tags.
    is_text_first = "<think>" in text or draw(st.booleans())
    deltas += [*said, *called] if is_text_first else [*called, *said]
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": d}]} for d in deltas]
    end = {"index": 0, "delta": draw(st.sampled_from([{}, None])), "finish_reason": reason}
    usage = {"prompt_tokens": 4, "completion_tokens": 5}
    if draw(st.booleans()):
        events.append({"id": "1", "choices": [end], "usage": usage})
    else:
        events += [{"id": "1", "choices": [end]}, {"id": "1", "choices": [], "usage": usage}]
    frames = [
        b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events
    ]
    return b"".join([*frames, b"data: [DONE]\n\n"])


def read(
    answer: bytes, tools: list[dict[str, Any]], stop: list[str], cut: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the message, and its parts put together as LangChain does."""
    messages, given = [{"role": "user", "content": "go"}], {"tools": tools}
    exchange = exchange_for(ENDPOINT, messages, stop, given, streamed=cut is not None)
    found: list[Delta] = []
    attempt = next(iter(exchange.attempts()))
    cut = cut or len(answer)
    for at in range(0, len(answer), cut):
        found += attempt.feed(answer[at : at + cut])
        if attempt.done:
            break
    found += attempt.end()
    end = exchange.answer_end()
    chunks: list[ChatGenerationChunk] = [*map(to_chunk, found), last_chunk(end)]
    yield seen(to_result(found, end).generations[0].message)
    yield seen(sum(chunks[1:], chunks[0]).message)


def seen(message: Any) -> dict[str, Any]:
    assert isinstance(message, AIMessage)
    return {
        "text": message.text,
        "thought": message.additional_kwargs.get("reasoning_content"),
        "calls": [(c["name"], c["args"]) for c in message.tool_calls],
        "invalid": [(c["name"], c["args"]) for c in message.invalid_tool_calls],
        "reason": message.response_metadata["finish_reason"],
        "usage": message.usage_metadata,
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150)
@given(st.data(), st.sampled_from(["", "Hm.\n"]), texts, calls)
def test_a_stream_says_what_a_whole_answer_says(data, thought, text, made):
    """Whatever is cut where, and however the server counts its calls.

    But for a thought that began in the prompt: a stream has said it before its end tells.
    """
    assume("<think>" in text.partition("</think>")[0] or "</think>" not in text)
    reason = data.draw(st.sampled_from(["stop", "length", "tool_calls"]))
    tools = data.draw(st.sampled_from([TOOLS, []]))
    stop = data.draw(st.sampled_from([[], ["END"]]))
    if stop or not tools:  # what stands behind a stop text never comes in a stream
        made = []
    expected, again = read(whole(thought, text, made, reason), tools, stop)
    assert again == expected
    sent = data.draw(streams(thought, text, made, reason))
    cut = data.draw(st.sampled_from([1, 7, len(sent)]))
    for found in read(sent, tools, stop, cut):
        if stop:  # a stream that is cut does not tell its usage any more
            found["usage"] = expected["usage"]
        assert found == expected
