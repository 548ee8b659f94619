"""Turns go out in the order that a chat template takes, and what went out stays as it was."""

import pytest
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_car_vllm.models.families import FAMILIES, family_facts, serving_of_name
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.turns import order_turns

S, U, A, T = (
    SystemMessage("s"),
    HumanMessage("u"),
    AIMessage("a"),
    ToolMessage("t", tool_call_id="1"),
)
CALL = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
USER_FIRST = {
    "system later": ([S, U, A, S, U], ["system", "user", "assistant", "user", "user"]),
    "system alone": ([S], ["user"]),
    "two systems alone": ([S, S], ["system", "user"]),
    "answer before a user": ([S, A, U], ["user", "assistant", "user"]),
    "system after a call": ([U, CALL, T, S], ["user", "assistant", "tool", "user"]),
    "no user at all": ([A], ["user", "assistant"]),
    "as it should be": ([S, U, CALL, T], ["system", "user", "assistant", "tool"]),
}


@pytest.mark.parametrize("model", ["qwen3.6-35b-a3b", "Qwen3.5-4B", "mistral-7b", "gemma-3-4b"])
@pytest.mark.parametrize("name", USER_FIRST)
def test_what_a_familys_template_refuses_goes_out_as_what_it_takes(serve, model, name):
    """In its place, by the family's name."""
    messages, roles = USER_FIRST[name]
    chat, dialect = serve(Reply(text="ok"), dialect={"served_model": model}, model=model)
    chat.invoke(messages)
    assert [message["role"] for message in dialect.requests[0]["messages"]] == roles


def test_other_families_get_what_was_written(serve):
    """Their templates take it."""
    chat, dialect = serve(Reply(text="ok"), dialect={"served_model": "qwen3-8b"}, model="qwen3-8b")
    chat.invoke([S, U, A, S])
    roles = [message["role"] for message in dialect.requests[0]["messages"]]
    assert roles == ["system", "user", "assistant", "system"]


def test_an_answer_at_the_beginning_needs_a_user_where_turns_alternate():
    """Such templates count the turns."""
    messages = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}]
    assert [m["role"] for m in order_turns(messages, "alternating")] == [
        "user",
        "assistant",
        "user",
    ]
    assert order_turns(messages, "user-first") == messages
    assert order_turns(messages, None) == messages


turns = st.lists(st.sampled_from(["user", "assistant", "system", "tool"]), max_size=6)


@given(
    turns,
    st.sampled_from(["user", "system"]),
    turns,
    st.sampled_from(["user-first", "alternating"]),
)
def test_what_follows_an_answer_changes_nothing_before_it(begun, asked, more, order):
    """So the server's prefix cache holds from turn to turn."""
    history = [{"role": role, "content": str(n)} for n, role in enumerate(["user", *begun, asked])]
    later = [{"role": role, "content": "x"} for role in ["assistant", *more]]
    sent = order_turns(history, order)
    assert order_turns([*history, *later], order)[: len(sent)] == sent
    assert not any(m["role"] == "system" for m in sent)


def test_a_system_prompt_alone_stays_the_users_when_the_conversation_goes_on():
    """It was answered as one."""
    system = {"role": "system", "content": "s"}
    later = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}]
    sent = order_turns([system], "user-first")
    assert order_turns([system, *later], "user-first")[:1] == sent


def test_what_an_unknown_template_refuses_is_ordered_and_sent_once_more(serve):
    """The family is known by its sentence alone; a second refusal reaches the user."""
    sentence = "the chat template refused the messages: System message must be at the beginning."

    def strict(body):
        later = any(m["role"] == "system" for m in body["messages"][1:])
        return Reply(status=400, detail=sentence) if later else Reply(text="ok")

    model, dialect = serve(strict)
    assert model.invoke([S, U, A, S, U]).text == "ok"
    assert "".join(chunk.text for chunk in model.stream([S, U, A, S, U])) == "ok"
    assert len(dialect.requests) == 4
    model, dialect = serve(Reply(status=400, detail=sentence))
    with pytest.raises(InvalidRequestError, match="must be at the beginning") as caught:
        model.invoke([S, U, A, S, U])
    assert not caught.value.is_retryable
    assert len(dialect.requests) == 2


def test_the_rows_of_a_family_agree_on_the_order():
    """The order is looked up by the family's name, which more than one row may have."""
    for row in FAMILIES:
        assert row.turn_order in (None, "user-first", "alternating")
        assert {other.turn_order for other in FAMILIES if other.name == row.name} == {
            row.turn_order
        }
    assert serving_of_name("org/Qwen3.6-27B-4bit").turn_order == "user-first"
    assert family_facts("org/Mistral-Small").turn_order == "alternating"
