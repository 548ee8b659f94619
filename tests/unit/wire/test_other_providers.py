"""Conversations that were held with models of other providers, and go on here."""

import base64
import json
import warnings
from typing import Any

import pytest
from fakes.reply import Reply
from hypothesis import given as over
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_car_vllm import UnsentContentWarning
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.messages import to_server_messages
from langchain_car_vllm.wire.request.provider_blocks import is_call, plain_block

CSV = base64.b64encode(b"a,b").decode()
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
FILES = {
    "OpenAI's newer API": {"type": "input_file", "file_data": f"data:text/csv;base64,{CSV}"},
    "Anthropic's bytes": {
        "type": "document",
        "source": {"type": "base64", "media_type": "text/csv", "data": CSV},
    },
    "Anthropic's parts": {
        "type": "document",
        "source": {"type": "content", "content": [{"type": "text", "text": "a,b"}]},
    },
    "Anthropic's text": {"type": "document", "source": {"type": "content", "content": "a,b"}},
    "Google's bytes": {"type": "media", "mime_type": "text/csv", "data": b"a,b"},
    "Bedrock's text": {"text": "a,b"},
}


@pytest.mark.parametrize("block", FILES.values(), ids=FILES)
def test_a_file_of_text_is_read_as_text(serve, block):
    """In whatever provider's block it lies, in a result of a tool, too."""
    model, dialect = serve(Reply(text="ok"))
    call = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}])
    model.invoke([HumanMessage([block]), call, ToolMessage([block], tool_call_id="1")])
    user, _, result = dialect.requests[0]["messages"]
    assert (user["content"], result["content"]) == ("a,b", "a,b")


@pytest.mark.parametrize("content", [[{"text": "Mars."}], [{"text": "Ma"}, {"text": "rs."}]])
def test_text_without_a_type_stays_in_the_history(serve, content):
    """As Bedrock and Gemini write it; an empty answer stood there instead."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("go"), AIMessage(content), HumanMessage("on")])
    assert dialect.requests[0]["messages"][1]["content"] == "Mars."


def test_a_dictionary_with_more_than_a_text_stays_one(serve):
    """It is a row of a table."""
    model, dialect = serve(Reply(text="ok"))
    row = ToolMessage([{"text": "a", "id": 1}], tool_call_id="1")
    model.invoke([HumanMessage("go"), AIMessage("", additional_kwargs={"tool_calls": [CALL]}), row])
    assert dialect.requests[0]["messages"][2]["content"] == '{"text": "a", "id": 1}'


@pytest.mark.parametrize("role", ["assistant", "ai", "model"])
@pytest.mark.parametrize("content", ["", [{"type": "text", "text": ""}]], ids=["text", "blocks"])
def test_a_call_of_a_message_by_role_stays_in_the_history(serve, role, content):
    """Its result answered nothing, and a model's words counted as the user's."""
    model, dialect = serve(Reply(text="ok"))
    said = ChatMessage(content, role=role, additional_kwargs={"tool_calls": [CALL]})
    result = ChatMessage("Mars", role="tool", additional_kwargs={"tool_call_id": "1"})
    model.invoke([HumanMessage("go"), said, result, HumanMessage("on")])
    _, answer, told, _ = dialect.requests[0]["messages"]
    assert (answer["role"], answer["tool_calls"]) == ("assistant", [CALL])
    assert told == {"role": "tool", "tool_call_id": "1", "content": "Mars"}


def test_geminis_call_in_a_block_is_one(serve):
    """It has the name of OpenAI's, and its arguments under another."""
    model, dialect = serve(Reply(text="ok"))
    block = {"type": "function_call", "name": "look", "args": {"at": "x"}, "id": "1"}
    model.invoke([HumanMessage("go"), AIMessage([block]), ToolMessage("Mars", tool_call_id="1")])
    assert dialect.requests[0]["messages"][1]["tool_calls"] == [CALL]


ARGS = {"at": "x"}
RAW = {
    "Bedrock": (
        {"toolUse": {"toolUseId": "1", "name": "look", "input": ARGS}},
        {"toolResult": {"toolUseId": "1", "content": [{"text": "Mars"}], "status": "success"}},
    ),
    "Gemini": (
        {"functionCall": {"id": "1", "name": "look", "args": ARGS}},
        {"functionResponse": {"id": "1", "name": "look", "response": {"at": "Mars"}}},
    ),
    "LangChain's package": (
        {"type": "non_standard", "value": {"function_call": {"name": "look", "args": ARGS}}},
        {"function_response": {"name": "look", "response": {"at": "Mars"}}},
    ),
}


@pytest.mark.parametrize(("call", "result"), RAW.values(), ids=RAW)
def test_a_raw_call_and_its_result_are_ones(serve, call, result):
    """As the provider's own API has them; the call was left out, and its result was refused."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("go"), AIMessage([call]), HumanMessage([result])])
    _, answer, told = dialect.requests[0]["messages"]
    (sent,) = answer["tool_calls"]
    assert sent["function"] == CALL["function"]
    assert told["role"] == "tool"
    assert told["tool_call_id"] == sent["id"]
    assert "Mars" in told["content"]


def test_a_raw_thought_is_one_and_what_is_sealed_is_left_out(serve, recwarn):
    """Nobody can read a seal or a mark of a cache."""
    model, dialect = serve(Reply(text="ok"))
    thought = {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "abc"}}}
    seals = [
        {"reasoningContent": {"redactedContent": b"abc"}},
        {"type": "redacted_thinking", "data": "abc"},
        {"type": "function_call_signature", "signature": "abc"},
    ]
    mark = {"cachePoint": {"type": "default"}}
    system = SystemMessage([{"text": "Be kind."}, mark])
    model.invoke([system, HumanMessage([{"text": "go"}, mark]), AIMessage([thought, *seals])])
    said = [message["content"] for message in dialect.requests[0]["messages"]]
    assert said == ["Be kind.", "go", ""]
    assert dialect.requests[0]["messages"][2]["reasoning_content"] == "Hm."
    assert not list(recwarn)


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize(
    "block",
    [
        {"image": {"format": "png", "source": {"bytes": PNG}}},
        {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}},
        {"inline_data": {"mime_type": "image/png", "data": PNG}},
    ],
)
def test_a_raw_picture_is_one(serve, block):
    """In the user's message and in a result, as text of its bytes in neither."""
    model, dialect = serve(Reply(text="ok"), dialect={"multimodal": True})
    result = {"toolResult": {"toolUseId": "1", "content": [block]}}
    call = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}])
    model.invoke([HumanMessage([block]), call, HumanMessage([result])])
    model.invoke([HumanMessage([block]), call, ToolMessage([block], tool_call_id="1")])
    for body in dialect.requests:
        user, _, _, shown = body["messages"]
        assert user["content"][0]["image_url"] == shown["content"][-1]["image_url"]


@pytest.mark.parametrize("source", [{"bytes": b"a,b"}, {"bytes": CSV}, {"text": "a,b"}])
def test_a_raw_file_of_text_is_read_as_text(serve, source):
    """Bedrock's, by its bytes or its text."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage([{"document": {"format": "csv", "name": "a", "source": source}}])])
    assert dialect.requests[0]["messages"][0]["content"] == "a,b"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "1", "content": []},
        {"type": "server_tool_call", "id": "1", "name": "x", "args": {}},
    ],
)
def test_no_model_reads_a_line_of_ours_as_its_own_words(serve, block):
    """What another provider's servers did is left out of the answer, with a warning."""
    model, dialect = serve(Reply(text="ok"))
    with pytest.warns(UnsentContentWarning):
        model.invoke([HumanMessage("?"), AIMessage([block, "It is 3."]), HumanMessage("on")])
    assert dialect.requests[0]["messages"][1]["content"] == "It is 3."


@pytest.mark.parametrize(
    "block", [{"type": "input_json_delta", "partial_json": "{"}, {"index": 1}, {}]
)
def test_what_streams_leave_behind_is_nothing(serve, block):
    """It has no content, and needs no warning."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("?"), AIMessage([block, "It is 3."]), HumanMessage("on")])
    assert dialect.requests[0]["messages"][1]["content"] == "It is 3."


KINDS = [
    *("text", "image", "audio", "video", "file", "document", "json", "refusal", "search_result"),
    *("tool_use", "tool_call", "function_call", "tool_result", "server_tool_use", "mcp_call"),
    *("web_search_tool_result", "web_search_call", "code_execution_result", "executable_code"),
    *("server_tool_call", "server_tool_result", "invalid_tool_call", "non_standard", "citation"),
    *("container_upload", "image_generation_call", "guard_content", "x", None),
]
KEYS = [
    *("text", "name", "input", "args", "id", "content", "source", "value", "url", "data", "json"),
    *(
        "toolUse",
        "toolResult",
        "functionCall",
        "guardContent",
        "citationsContent",
        "executableCode",
    ),
]
MARK = "xyzzy"
values = st.recursive(
    st.just(MARK),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(st.sampled_from(KEYS), inner, min_size=1, max_size=2)
    ),
    max_leaves=3,
)
blocks = st.builds(
    lambda kind, more: {**({} if kind is None else {"type": kind}), **more},
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3),
)


def spoken_by(block: Any) -> list[BaseMessage]:
    """Return messages of everybody who may have written a block."""
    return [
        HumanMessage([block]),
        AIMessage([block]),
        AIMessage([block], tool_calls=[{"name": "f", "args": {}, "id": "9"}]),
        SystemMessage([block]),
        ToolMessage([block], tool_call_id="1"),
        *(ChatMessage([block], role=role) for role in ("assistant", "tool", "user", "critic")),
    ]


@over(blocks, st.integers(0, 8), st.booleans())
def test_no_block_is_left_out_in_silence(block, speaker, is_last):
    """It is sent, read as text, refused, or named in a line and a warning."""
    message = spoken_by(block)[speaker]
    if getattr(message, "tool_calls", None) and is_call(plain_block(block)):
        return  # LangChain's own list of calls counts
    thread = [message] if is_last else [message, HumanMessage("on")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sent = to_server_messages(thread, Endpoint("http://127.0.0.1:9/v1", None, "m"))
        except InvalidRequestError:
            return
    told = json.dumps([[m.content, getattr(m, "tool_calls", [])] for m in sent])
    assert MARK in told or any(w.category is UnsentContentWarning for w in caught)
