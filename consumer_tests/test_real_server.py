"""Agents, middleware and retrievers of others on the real server, with small models."""

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import built
from deepagents import create_deep_agent
from dev_server import run_graph, running_dev
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain.chat_models import init_chat_model
from langchain_classic.chains.query_constructor.schema import AttributeInfo
from langchain_classic.retrievers import MultiQueryRetriever, SelfQueryRetriever
from langchain_community.query_constructors.chroma import ChromaTranslator
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_mcp_adapters.client import MultiServerMCPClient
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_car_vllm import register

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
ASK = {"messages": [HumanMessage("How many seats has the main hall?")]}


@pytest.fixture
def model(real: None) -> Any:
    """Qwen2.5-Coder-1.5B by name, as a framework makes it."""
    register()
    name = f"vllm_mlx:{built('qwen2.5-coder-1.5b')}"
    return init_chat_model(name, temperature=0, max_tokens=200)


@tool
def seats(hall: str) -> str:
    """Tell how many seats a hall has."""
    return f"{hall} has 40 seats"


@tool
def doors(hall: str) -> str:
    """Tell how many doors a hall has."""
    return f"{hall} has 2 doors"


def results(messages: list[BaseMessage]) -> list[str]:
    """Return what tools answered."""
    return [message.text for message in messages if isinstance(message, ToolMessage)]


def test_a_deep_agent_writes_a_file(model: Any):
    """deepagents' default agent, with the harness that its entry point brings."""
    ask = {"messages": [HumanMessage("Write the word seven into the file /note.txt.")]}
    found = create_deep_agent(model=model).invoke(ask)
    assert found["files"]["/note.txt"]["content"].strip() == "seven"
    first = found["messages"][1]
    assert first.usage_metadata["input_tokens"] < 2_000  # its own descriptions take 4,000


async def test_tools_of_a_real_mcp_server(model: Any):
    """A name that the server's templates would break on comes back as it was."""
    shop = {
        "command": sys.executable,
        "args": [str(Path(__file__).with_name("inventory_server.py"))],
        "transport": "stdio",
    }
    tools = await MultiServerMCPClient({"shop": shop}).get_tools()
    counting = [each for each in tools if each.name == "shelf.count"]
    ask = {"messages": [HumanMessage("How many bolts are on the shelf?")]}
    found = (await create_agent(model, counting).ainvoke(ask))["messages"]
    assert found[1].tool_calls[0]["name"] == "shelf.count"
    assert "bolts: 7 pieces" in results(found)


def test_middleware_together(model: Any):
    """Selected, limited, retried, cleaned and with something to fall back to."""
    stack = [
        LLMToolSelectorMiddleware(model=model, max_tools=1),
        PIIMiddleware("email"),
        ModelCallLimitMiddleware(run_limit=4),
        ToolCallLimitMiddleware(run_limit=3),
        ToolRetryMiddleware(),
        ModelRetryMiddleware(),
        ModelFallbackMiddleware(model),
    ]
    found = create_agent(model, [seats, doors], middleware=stack).invoke(ASK)["messages"]
    assert any("40 seats" in text for text in results(found))


def test_a_person_decides(model: Any):
    """The agent stops before the tool, and goes on once a person has approved it."""
    ask_first = HumanInTheLoopMiddleware(interrupt_on={"seats": True})
    agent = create_agent(model, [seats], middleware=[ask_first], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    assert agent.invoke(ASK, thread)["__interrupt__"]
    approved = Command(resume={"decisions": [{"type": "approve"}]})
    assert any("40 seats" in text for text in results(agent.invoke(approved, thread)["messages"]))


def test_a_tool_is_emulated(model: Any):
    """The model plays the tool: its words are the result."""
    emulator = LLMToolEmulator(model=model)
    agent = create_agent(
        model, [seats], middleware=[emulator, ModelCallLimitMiddleware(run_limit=2)]
    )
    assert all(results(agent.invoke(ASK)["messages"]))


def test_a_long_thread_is_summarised(model: Any):
    """The summary takes the place of what it sums up."""
    short = SummarizationMiddleware(model, trigger=("messages", 6), keep=("messages", 2))
    notes = [HumanMessage(f"Note {n}: the hall has {n} lamps.") for n in range(8)]
    found = create_agent(model, [], middleware=[short]).invoke({"messages": notes})["messages"]
    assert len(found) == 4  # the summary, two notes, the answer
    assert found[-1].text


def test_retrievers_ask_the_model(model: Any):
    """A question in several wordings, and one that becomes a filter."""
    vectors = DeterministicFakeEmbedding(size=8)
    shelf = InMemoryVectorStore.from_texts(["bolts", "nuts", "screws"], vectors)
    base = shelf.as_retriever(search_kwargs={"k": 1})
    found = MultiQueryRetriever.from_llm(base, model).invoke("metal things")
    assert {document.page_content for document in found} <= {"bolts", "nuts", "screws"}
    assert found
    moons = InMemoryVectorStore(vectors)
    moons.add_documents([Document("Phobos", metadata={"year": 1877})])
    year = AttributeInfo(name="year", description="the year of discovery", type="integer")
    retriever = SelfQueryRetriever.from_llm(
        model, moons, "moons of planets", [year], structured_query_translator=ChromaTranslator()
    )
    query = retriever.query_constructor.invoke({"query": "moons discovered after 1800"})
    assert "1800" in str(query.filter)


def test_a_graph_under_langgraph_dev(real: None, tmp_path: Path):
    """From a cold start of the real server, with the check for blocking calls on."""
    with running_dev(tmp_path, built("smollm2-135m")) as address:
        found = run_graph(address, "every_way")
    assert "messages" in found, found
    asked, *answers = [message["content"] for message in found["messages"]]
    assert asked == "hi"
    assert len(answers) == 3
    assert all(answers)
