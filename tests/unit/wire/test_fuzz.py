"""Whatever comes in: a payload the server takes or a typed error, a message or a typed error."""

import base64
import json
from typing import Any

import pytest
from fakes.reply import Reply
from fakes.request_schema import complaint_about
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGenerationChunk

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.wire.answer.reader import Answer, Delta
from langchain_car_vllm.wire.answer.result import last_chunk, to_chunk, to_result
from langchain_car_vllm.wire.chat_cache import chat_for
from langchain_car_vllm.wire.exchange.exchange import Exchange
from langchain_car_vllm.wire.exchange.strategy import exchange_for
from langchain_car_vllm.wire.transport.error_mapping import map_encoding_errors, map_errors
from langchain_car_vllm.wire.transport.refusal import Refusal

ENDPOINT = Endpoint("http://127.0.0.1:9/v1", None, "m")
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
kinds = st.sampled_from(
    [
        "text",
        "image",
        "image_url",
        "audio",
        "input_audio",
        "video",
        "file",
        "reasoning",
        "thinking",
        "tool_use",
        "tool_call",
        "tool_result",
        "document",
        "text-plain",
        "non_standard",
        "x",
    ]
)
urls = st.sampled_from(
    [
        "",
        "data:,x",
        f"data:image/png;base64,{PIXEL}",
        "data:image/png;base64,%%%",
        "ftp://x/y",
        "file:///no/such/file",
        "picture.png",
    ]
)
blocks = st.one_of(
    st.text(max_size=8),
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=8)}),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["image", "audio", "video"]),
            "mime_type": st.just("image/png"),
            "base64": st.sampled_from([PIXEL, "", "AAAA", "ä"]),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["image_url", "image"]), "image_url": urls, "url": urls}
    ),
    st.fixed_dictionaries(
        {"type": kinds},
        optional={"text": json_values, "reasoning": st.text(max_size=5), "source": json_values},
    ),
)
contents = st.text(max_size=20) | st.lists(blocks, max_size=3)
ids = st.text(max_size=4)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=5),
            "args": st.dictionaries(st.text(max_size=4), json_values, max_size=2),
            "id": st.none() | ids,
        }
    ),
    max_size=2,
)
extras = st.dictionaries(
    st.sampled_from(
        ["reasoning_content", "tool_calls", "function_call", "audio", "name", "refusal"]
    ),
    json_values,
    max_size=2,
)


@st.composite
def messages(draw: Any) -> BaseMessage:  # noqa: PLR0911
    kind = draw(st.sampled_from(["human", "ai", "system", "tool", "function", "chat", "remove"]))
    if kind == "remove":
        return RemoveMessage(id="1")
    content = draw(contents)
    if kind == "human":
        return HumanMessage(content, name=draw(st.none() | st.text(max_size=3)))
    if kind == "ai":
        return AIMessage(content, tool_calls=draw(calls), additional_kwargs=draw(extras))
    if kind == "system":
        return SystemMessage(content)
    if kind == "tool":
        return ToolMessage(content, tool_call_id=draw(ids))
    if kind == "function":
        return FunctionMessage(content=content, name=draw(ids))
    return ChatMessage(content=content, role=draw(st.sampled_from(["user", "assistant", "wizard"])))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(st.lists(messages(), max_size=4))
def test_any_conversation_is_a_payload_or_a_typed_error(conversation):
    """What LangChain can build, the server's request schema takes, or the user is told why not."""
    chat = chat_for(ENDPOINT, (), 0)
    try:
        with map_encoding_errors():
            sent = chat._sent_messages(conversation)
            body = exchange_for(ENDPOINT, sent, None, {}, streamed=False).body
            encoded = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except CarVllmError:
        return
    assert complaint_about(json.loads(encoded)) is None


deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": json_values,
        "content": json_values | st.text(max_size=10),
        "reasoning_content": json_values | st.text(max_size=5),
        "tool_calls": json_values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "index": json_values | st.integers(0, 2),
                    "id": json_values | st.text(max_size=3),
                    "function": json_values
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "name": json_values | st.text(max_size=3),
                            "arguments": json_values | st.text('{}":,a1', max_size=8),
                        },
                    ),
                },
            ),
            max_size=2,
        ),
    },
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "index": st.just(0),
        "delta": deltas,
        "message": deltas,
        "finish_reason": st.sampled_from(
            [None, "stop", "length", "tool_calls", "error", "abort", 5]
        ),
    },
)
events = json_values | st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "model": json_values,
        "choices": json_values | st.lists(choices, max_size=2),
        "usage": json_values
        | st.fixed_dictionaries({"prompt_tokens": json_values, "completion_tokens": st.integers()}),
        "error": json_values | st.fixed_dictionaries({"code": json_values, "message": json_values}),
    },
)
lines = st.one_of(
    st.binary(max_size=20),
    events.map(lambda event: b"data: " + json.dumps(event).encode()),
    st.sampled_from([b"data: [DONE]", b": heartbeat", b"", b"event: x", b"data:"]),
)


def run(exchange: Exchange, answers: list[list[bytes]]) -> None:
    """Take the answers in and make messages of them, as the drivers do."""
    found: list[Delta] = []
    left = iter(answers)
    for attempt in exchange.attempts():
        assert complaint_about(json.loads(json.dumps(attempt.body))) is None
        with map_errors(ENDPOINT, None, exchange.explain, sent=dict):
            for part in next(left):
                found += attempt.feed(part)
                if attempt.done:
                    break
            found += attempt.end()
    closing = exchange.answer_end()
    whole: ChatGenerationChunk | None = None
    for delta in found:
        chunk = to_chunk(delta)
        whole = chunk if whole is None else whole + chunk
    last = last_chunk(closing)
    whole = last if whole is None else whole + last
    message = to_result(found, closing).generations[0].message
    assert message.text == whole.message.text
    assert [c["name"] for c in message.tool_calls] == [c["name"] for c in whole.message.tool_calls]
    assert message.usage_metadata == whole.message.usage_metadata


def function(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


FORM = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
asked = st.fixed_dictionaries(
    {
        "max_tokens": st.just(1),
        "tools": st.sampled_from([[], [function("a")], [function("a"), function("b")]]),
        "tool_choice": st.sampled_from(
            [None, "auto", "none", "required", {"type": "function", "function": {"name": "a"}}]
        ),
        "response_format": st.sampled_from(
            [None, {"type": "json_object"}, {"type": "json_schema", "json_schema": FORM}]
        ),
    }
).filter(lambda given: given["tools"] or given["tool_choice"] in (None, "auto", "none"))
written = st.sampled_from(
    [
        b'data: {"choices": [{"delta": {"content": "{\\"a\\": 1}"}, "finish_reason": "stop"}]}',
        b'data: {"choices": [{"delta": {"content": "<tool_call>{\\"name\\": \\"a\\""}}]}',
        b'data: {"choices": [{"delta": {"content": "{\\"name\\":\\"a\\",\\"arguments\\":{}}"}}]}',
        b'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}',
    ]
)
replies = st.lists(lines | written, max_size=6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=400, deadline=None)
@given(
    asked,
    st.lists(replies, min_size=2, max_size=2),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([[], ["1"], ["}", "a"]]),
)
def test_any_bytes_are_a_message_or_a_typed_error(given, raw, cut, streamed, stop):
    """However they are cut and whatever was asked for: never a bare KeyError, and both ways of
    calling agree.
    """
    exchange = exchange_for(
        ENDPOINT, [{"role": "user", "content": "go"}], stop, given, streamed=streamed
    )
    wire = streamed or bool(stop)
    answers = []
    for parts in raw:
        whole = (
            b"\n".join(parts) if wire else b"".join(p.removeprefix(b"data: ") for p in parts[:1])
        )
        answers.append([whole[i : i + cut] for i in range(0, len(whole), cut)])
    try:
        run(exchange, answers)
    except CarVllmError:
        return


complaints = st.dictionaries(
    st.sampled_from(
        ["detail", "error", "message", "code", "type", "loc", "msg", "status", "title"]
    ),
    json_values
    | st.lists(st.fixed_dictionaries({"loc": json_values, "msg": json_values}), max_size=2),
    max_size=4,
)


@given(
    complaints | json_values,
    st.sampled_from([400, 401, 404, 413, 422, 429, 500, 503, 599, 999]),
    st.sampled_from([None, "nan", "inf", "-1", "1e400", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"]),
)
@example({"detail": [{"loc": 5, "msg": "x"}]}, 422, None)
def test_any_refusal_is_a_typed_error(complaint, status, retry_after):
    """Whatever a server says of a failure, with its status or in an event."""
    content = json.dumps(complaint).encode()
    headers = [] if retry_after is None else [(b"Retry-After", retry_after.encode())]
    with pytest.raises(CarVllmError) as caught, map_errors(ENDPOINT, None, sent=dict):
        raise Refusal(status, headers, content)
    str(caught.value).encode()
    answer = Answer(streamed=True)
    try:
        answer.feed(b"data: " + content + b"\n\n")
        answer.end()
    except CarVllmError as error:
        str(error).encode()


def test_the_picture_of_these_tests_is_one():
    """The fuzz reaches the path of a good image."""
    assert base64.b64decode(PIXEL).startswith(b"\x89PNG")


words = st.sampled_from(
    ["type", "text", "url", "base64", "data", "mime_type", "source_type", "id", "source", "file"]
)
names = ("image", "audio", "file", "url", "base64", "id", "text", "aGk=", "text/plain", "", 5)
values = st.none() | st.sampled_from([*names, ["image"], {"url": "data:image/png;base64,aGk="}])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(words, values, max_size=4),
    st.sampled_from([HumanMessage, AIMessage, SystemMessage, ToolMessage]),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_langchain_trips_over_no_block(serve, block, kind):
    """Its own reading and tracing come before ours, and fail at blocks that they do not expect."""
    model, _ = serve(Reply(text="ok"))
    more = {"tool_call_id": "1"} if kind is ToolMessage else {}
    try:
        assert model.invoke([HumanMessage("go"), kind([block], **more)]).text == "ok"
    except CarVllmError:
        assert kind in (HumanMessage, SystemMessage)  # the user's own can be written anew
