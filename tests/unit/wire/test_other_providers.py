"""Conversations that were held with models of other providers, and go on here."""

import base64

import pytest
from fakes.reply import Reply
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, ToolMessage

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
