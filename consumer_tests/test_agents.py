"""Agents that others build: deep agents, MCP tools, supervisors and swarms."""

import sys
from pathlib import Path
from typing import Any

from conftest import Serve
from deepagents import create_deep_agent
from fakes.reply import Reply
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_mcp_adapters.client import MultiServerMCPClient
from langgraph.checkpoint.memory import InMemorySaver
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm

ASK = {"messages": [HumanMessage("How many bolts are there?")]}


def names(body: dict[str, Any]) -> set[str]:
    """Return the names of a request's tools."""
    return {t["function"]["name"] for t in body.get("tools", ())}


def test_a_deep_agent_by_name(serve: Serve, monkeypatch):
    """The entry points alone give it the provider and the harness for small local models."""
    replies = iter(
        [
            Reply(calls=[("write_file", {"file_path": "/note.txt", "content": "seven"})]),
            Reply(calls=[("read_file", {"file_path": "/note.txt"})]),
        ]
    )
    _, server = serve(lambda _: next(replies, Reply(text="Seven.")))
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", server.base_url)
    found = create_deep_agent(model="vllm_mlx:m").invoke(ASK)
    assert found["messages"][-1].text == "Seven."
    assert "seven" in [m for m in found["messages"] if isinstance(m, ToolMessage)][-1].text
    first = server.dialect.requests[0]
    assert "task" not in names(first)
    assert {"read_file", "write_file", "edit_file"} <= names(first)
    assert all(len(t["function"]["description"]) < 300 for t in first["tools"])


async def test_tools_of_a_real_mcp_server(serve: Serve):
    """Names that the server would refuse, results in blocks, and errors that the model is told."""
    client = MultiServerMCPClient(
        {
            "shop": {
                "command": sys.executable,
                "args": [str(Path(__file__).with_name("inventory_server.py"))],
                "transport": "stdio",
            }
        }
    )
    tools = await client.get_tools()
    assert {t.name for t in tools} == {"shelf.count", "broken"}

    def script(body: dict[str, Any]) -> Reply:
        counts = [name for name in names(body) if name.startswith("shelf")]
        results = [m for m in body["messages"] if m["role"] == "tool"]
        if not results:
            return Reply(calls=[(counts[0], {"item": "bolts"})])
        return Reply(text=f"There are {results[-1]['content']}.")

    model, server = serve(script)
    found = (await create_agent(model, tools).ainvoke(ASK))["messages"]
    assert found[1].tool_calls[0]["name"] == "shelf.count"
    assert found[-1].text == "There are bolts: 7 pieces."
    assert "shelf.count" not in names(server.dialect.requests[0])


@tool
def count(item: str) -> str:
    """Count the pieces of an item."""
    return f"{item}: 7 pieces"


def test_a_supervisor_hands_over_and_takes_back(serve: Serve):
    """Agents with names, and histories that hold other agents' calls."""

    def script(body: dict[str, Any]) -> Reply:
        results = [m for m in body["messages"] if m["role"] == "tool"]
        if "transfer_to_clerk" in names(body):
            done = any("back" in str(m["content"]).lower() for m in results)
            return Reply(text="Seven.") if done else Reply(calls=[("transfer_to_clerk", {})])
        if any("pieces" in str(m["content"]) for m in results):
            return Reply(text="Seven bolts.")
        return Reply(calls=[("count", {"item": "bolts"})])

    model, server = serve(script)
    clerk = create_agent(model, [count], name="clerk", system_prompt="You count.")
    team = create_supervisor([clerk], model=model, output_mode="full_history").compile()
    found = team.invoke(ASK)["messages"]
    assert found[-1].text == "Seven."
    assert "bolts: 7 pieces" in [m.text for m in found]
    roles = [[m["role"] for m in body["messages"]] for body in server.dialect.requests]
    assert all(r[0] in ("system", "user") for r in roles)


def test_a_swarm_keeps_its_active_agent(serve: Serve):
    """One agent hands the conversation to another, which answers the next turn, too."""

    def script(body: dict[str, Any]) -> Reply:
        if "transfer_to_bob" in names(body):
            return Reply(calls=[("transfer_to_bob", {})])
        return Reply(text="Bob here.")

    model, _ = serve(script)
    alice = create_agent(model, [create_handoff_tool(agent_name="bob")], name="alice")
    bob = create_agent(model, [count], name="bob")
    swarm = create_swarm([alice, bob], default_active_agent="alice")
    compiled = swarm.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    for _ in range(2):
        found = compiled.invoke(ASK, thread)
        assert (found["active_agent"], found["messages"][-1].text) == ("bob", "Bob here.")
