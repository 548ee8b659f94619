"""What other models said, thought and called in earlier turns is sent as what it is."""

import json

import pytest
from fakes.reply import Reply
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    ToolMessage,
)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "refusal", "refusal": "I will not."}, "I will not."),
        ({"type": "output_text", "text": "Mars.", "annotations": []}, "Mars."),
        ({"type": "text", "text": "Mars."}, "Mars."),
    ],
)
def test_what_another_model_said_stays_in_the_history(serve, block, text):
    """In whatever block it was said: an empty answer would stand there instead."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("go"), AIMessage([block]), HumanMessage("on")])
    assert dialect.requests[0]["messages"][1]["content"] == text


@pytest.mark.parametrize(
    "beside", [{"audio": {"id": "1", "transcript": "No."}}, {"refusal": "No."}]
)
def test_what_another_model_said_beside_the_content_stays_in_the_history(serve, beside):
    """OpenAI's models speak, and refuse, with nothing in the content."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("go"), AIMessage("", additional_kwargs=beside), HumanMessage("on")])
    assert dialect.requests[0]["messages"][1] == {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "reasoning", "reasoning": "Hm."},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "id": "1"},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {"type": "thinking", "thinking": "Hm.", "signature": "abc"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "reasoning_content", "reasoning_content": {"text": "Hm.", "signature": "abc"}},
    ],
)
def test_what_another_model_thought_stays_in_the_history(serve, block):
    """As the text that it is; Mistral's went out as Python writes a list."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("go"), AIMessage([block, "Yes."]), HumanMessage("on")])
    answer = dialect.requests[0]["messages"][1]
    assert answer == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


@pytest.mark.parametrize("result", ["Mars", [{"type": "text", "text": "Mars"}], {"at": "Mars"}])
@pytest.mark.parametrize("rest", [[], [{"type": "text", "text": "on"}]])
def test_a_result_in_anthropics_form_is_one(serve, result, rest):
    """It stands in a message of the user's there, which would go out without it."""
    model, dialect = serve(Reply(text="ok"))
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    told = {"type": "tool_result", "tool_use_id": "1", "content": result}
    turn = [AIMessage([call]), HumanMessage([told, *rest])]
    model.invoke([HumanMessage("go"), *turn, *turn])
    _, _, *sent = dialect.requests[0]["messages"]
    text = json.dumps(result) if isinstance(result, dict) else "Mars"
    assert sent[0] == {"role": "tool", "tool_call_id": "1", "content": text}
    user = [{"role": "user", "content": "on"}] if rest else []
    assert sent[1:] == [*user, dialect.requests[0]["messages"][1], sent[0], *user]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "1", "name": "look", "input": {"at": "é"}},
        {"type": "tool_call", "id": "1", "name": "look", "args": {"at": "é"}},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"at": "é"}'},
    ],
)
def test_a_call_that_stands_in_the_content_alone_is_one(serve, block):
    """As in a history that was written by hand: its result would answer nothing."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([HumanMessage("go"), AIMessage([block]), ToolMessage("Mars", tool_call_id="1")])
    (call,) = dialect.requests[0]["messages"][1]["tool_calls"]
    assert (call["id"], call["function"]["name"]) == ("1", "look")
    assert json.loads(call["function"]["arguments"]) == {"at": "é"}
