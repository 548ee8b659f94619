"""What a tool can be made of, and is given in its place, is answered with how to make it."""

from functools import partial
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseToolkit
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError

MODEL = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1")


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


class Adder:
    """Adds when it is called."""

    def __call__(self, a: int) -> int:
        """Add."""
        return a + 1


class Toolkit(BaseToolkit):
    """A toolkit."""

    def get_tools(self) -> list[Any]:
        """Return its tools."""
        return [add]


def graph() -> Any:
    """Return an agent of one step."""
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: state)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile()


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        (MODEL, "ChatVllmMlx", ".as_tool("),
        (ChatPromptTemplate.from_template("{secret}") | MODEL, "RunnableSequence", ".as_tool("),
        (RunnableLambda(add), "RunnableLambda", ".as_tool("),
        (graph(), "CompiledStateGraph", ".as_tool("),
        (Toolkit(), "Toolkit", "get_tools()"),
        (partial(add, b=2), "partial", "a function that calls it"),
        (Adder(), "Adder", "a function that calls it"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_what_is_not_a_tool_yet_is_answered_with_how_to_make_one(given, said, hint):
    """By its type alone: the whole of a chain would fill the screen."""
    with pytest.raises(ConfigurationError) as caught:
        MODEL.bind_tools([given])
    assert f"`{said}`" in caught.value.message
    assert len(caught.value.message) < 100
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
        {"type": "hosted_tool"},
        {},
    ],
    ids=str,
)
def test_a_choice_that_names_no_tool_is_not_said_to_name_one(choice):
    """What does not exist here is told from a tool that was forgotten."""
    with pytest.raises(ConfigurationError, match="`tool_choice` cannot be") as caught:
        MODEL.bind_tools([add], tool_choice=choice)
    assert "the name of a tool" in (caught.value.hint or "")
