"""A history that grows is converted once, and comes out as if it were converted anew."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.chat import WireChat, build
from langchain_car_vllm.wire.request import message_memo
from langchain_car_vllm.wire.request.message_memo import MessageMemo

TEXTS = st.sampled_from(["", "a", "b", "1", "\u00e4", "{}"])
VALUES = st.sampled_from([1, 1.0, True, None, "1", [1], {"a": 1}])
CALLS = st.lists(
    st.builds(
        lambda name, value, number: {"name": name, "args": {"v": value}, "id": number},
        st.sampled_from(["look", "book"]),
        VALUES,
        st.sampled_from(["1", "2"]),
    ),
    max_size=2,
)
BESIDE = st.sampled_from([{}, {"reasoning_content": "hm"}, {"name": "eve"}])
MESSAGES = st.one_of(
    st.builds(HumanMessage, TEXTS, name=st.sampled_from([None, "eve"])),
    st.builds(SystemMessage, TEXTS),
    st.builds(ToolMessage, TEXTS, tool_call_id=st.sampled_from(["1", "2"])),
    st.builds(AIMessage, TEXTS, tool_calls=CALLS, additional_kwargs=BESIDE),
    st.builds(AIMessageChunk, TEXTS, additional_kwargs=BESIDE),
    st.builds(lambda text: HumanMessage([{"type": "text", "text": text}]), TEXTS),
)


def new_chat() -> WireChat:
    """Return a wrapped ChatOpenAI that has converted nothing."""
    return build(Endpoint("http://127.0.0.1:1/v1", "key", "m"), (), 0)


def sent_by(chat: WireChat, messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return the messages as they go out."""
    return chat._sent_messages(messages)


SHARED = new_chat()


@given(st.lists(MESSAGES, min_size=1, max_size=6))
def test_what_was_converted_before_makes_no_difference(messages: list[BaseMessage]):
    """Whatever was sent before, and however often, the same bytes go out, each type of its own."""
    fresh = sent_by(new_chat(), messages)
    assert repr(sent_by(SHARED, messages)) == repr(fresh)
    assert repr(sent_by(SHARED, messages)) == repr(fresh)


def test_a_changed_message_is_converted_anew():
    """What a message says counts, not which object it is; what went out can be changed freely."""
    chat = new_chat()
    answer = AIMessage("", tool_calls=[{"name": "look", "args": {"a": [1]}, "id": "1"}])
    (first,) = sent_by(chat, [answer])
    first["content"] = "spoilt"
    answer.tool_calls[0]["args"]["a"].append(2)
    (second,) = sent_by(chat, [answer])
    assert (second["content"], '"a": [1, 2]' in repr(second)) == (None, True)


def test_only_the_end_of_a_grown_history_is_converted():
    """Two more messages are two conversions, also where a checkpointer made new objects of all."""
    converted: list[int] = []

    def convert(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
        converted.append(len(messages))
        return [{"content": message.content} for message in messages]

    memo = MessageMemo()
    history = [HumanMessage(str(number)) for number in range(200)]
    memo.convert(history, convert)
    copies = [message.model_copy(deep=True) for message in history]
    memo.convert([*copies, HumanMessage("new"), AIMessage("newer")], convert)
    assert converted == [200, 2]


def test_what_is_kept_is_bounded(monkeypatch):
    """The oldest goes first once there are too many characters."""
    monkeypatch.setattr(message_memo, "_MOST_CHARACTERS", 1000)
    memo, converted = MessageMemo(), []

    def convert(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
        converted.extend(str(message.content)[0] for message in messages)
        return [{} for _ in messages]

    for letter in "abca":
        memo.convert([HumanMessage(letter * 400)], convert)
    assert converted == ["a", "b", "c", "a"]
    memo.convert([HumanMessage("c" * 400)], convert)
    assert converted[-1] == "a"
