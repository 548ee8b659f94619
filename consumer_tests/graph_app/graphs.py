"""Graphs for `langgraph dev`: one that calls the model in each way, one that blocks the loop."""

import os
import time
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_car_vllm import ChatVllmMlx

llm = ChatVllmMlx(model=os.environ["MODEL"], max_tokens=3)


def weather(city: str) -> str:
    """Tell the weather."""
    return "sunny"


async def answer(state: MessagesState) -> dict[str, Any]:
    """Answer on the event loop, from a cold start."""
    return {"messages": [await llm.ainvoke(state["messages"])]}


async def stream(state: MessagesState) -> dict[str, Any]:
    """Stream on the event loop."""
    parts = [chunk.text async for chunk in llm.astream(state["messages"])]
    return {"messages": [AIMessage("".join(parts))]}


def whole(state: MessagesState) -> dict[str, Any]:
    """Answer in a thread."""
    return {"messages": [llm.invoke(state["messages"])]}


async def block(state: MessagesState) -> dict[str, Any]:
    """Block the event loop, which `langgraph dev` does not allow."""
    time.sleep(0.01)  # noqa: ASYNC251 - that is the point
    return {"messages": [AIMessage("nobody minded")]}


def chained(*nodes: Any) -> Any:
    """Return a graph of nodes in a row."""
    builder = StateGraph(MessagesState)
    for node in nodes:
        builder.add_node(node)
    for start, end in zip((START, *nodes), (*nodes, END), strict=True):
        builder.add_edge(getattr(start, "__name__", start), getattr(end, "__name__", end))
    return builder.compile()


every_way = chained(answer, stream, whole)
blocking = chained(block)
agent = create_agent(llm, [weather])
