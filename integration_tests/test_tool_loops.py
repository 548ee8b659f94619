"""Agents on a real model whose template shows calls in doubled braces: they end in words."""

import re

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool

from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

SYSTEM = (
    "You answer questions about the weather. Call the tool once for the city that is asked about. "
    "As soon as you have its result, answer in one plain sentence."
)
QUESTION = "What is the weather in Paris?"


@tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"It is sunny in {city}, 22 degrees."


@pytest.fixture(scope="module")
def caller(qwen: str, fast_cpu: dict[str, str]) -> ChatVllmMlx:
    return ChatVllmMlx(model=qwen, temperature=0, max_tokens=48, server_env=fast_cpu)


def is_in_words(text: str) -> bool:
    """Tell whether an answer says something, and holds nothing of a call."""
    return len(re.findall(r"[A-Za-z]{3,}", text)) >= 3 and not re.search(r'[{}]|"name"', text)


def test_create_agent_ends_in_words(caller: ChatVllmMlx):
    """The tool is called, nothing of the call stays in any message, and the answer is a text."""
    agent = create_agent(caller, [weather], system_prompt=SYSTEM)
    found = agent.invoke({"messages": [("user", QUESTION)]}, {"recursion_limit": 8})["messages"]
    answers = [message for message in found if isinstance(message, AIMessage)]
    print([(m.text, m.tool_calls) for m in answers])
    assert answers[0].tool_calls[0]["args"] == {"city": "Paris"}
    assert not [m.text for m in answers if re.search(r"[{}]", m.text)]
    assert is_in_words(answers[-1].text)


@pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset:DeprecationWarning")
def test_agent_executor_ends_in_words(caller: ChatVllmMlx):
    """The classic agent, which streams, does the same."""
    # Part of the group `examples`, which the full suite installs.
    from langchain_classic.agents import (
        AgentExecutor,
        create_tool_calling_agent,
    )

    prompt = ChatPromptTemplate.from_messages(
        [("system", SYSTEM), ("human", "{input}"), ("placeholder", "{agent_scratchpad}")]
    )
    agent = create_tool_calling_agent(caller, [weather], prompt)
    executor = AgentExecutor(
        agent=agent, tools=[weather], max_iterations=4, return_intermediate_steps=True
    )
    found = executor.invoke({"input": QUESTION})
    print(found)
    action, observation = found["intermediate_steps"][0]
    assert (action.tool, action.tool_input) == ("weather", {"city": "Paris"})
    assert "sunny" in observation
    assert is_in_words(found["output"])
    assert "max iterations" not in found["output"]
