"""Tools, conversations and the ways to call a model, for tests of what goes over the wire."""

import asyncio
from typing import Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

HISTORY = [
    HumanMessage("2+2?"),
    AIMessage("", tool_calls=[{"name": "add", "args": {"a": 2, "b": 2}, "id": "1"}]),
    ToolMessage("4", tool_call_id="1"),
]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Multiply(BaseModel):
    """Multiply two numbers."""

    a: int
    b: int = Field(ge=0)


class Divide(TypedDict):
    """Divide a number."""

    a: int


def shout(text: str) -> str:
    """Say it loudly."""
    return text


def sum_of(chunks) -> Any:
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def ways(model, messages, **given) -> dict[str, AIMessage]:
    """Return the message of each way to call."""

    async def both() -> tuple[Any, Any]:
        whole = None
        async for chunk in model.astream(messages, **given):
            whole = chunk if whole is None else whole + chunk
        return await model.ainvoke(messages, **given), whole

    whole = None
    for chunk in model.stream(messages, **given):
        whole = chunk if whole is None else whole + chunk
    ainvoked, astreamed = asyncio.run(both())
    return {
        "invoke": model.invoke(messages, **given),
        "stream": whole,
        "ainvoke": ainvoked,
        "astream": astreamed,
    }


def called(message: AIMessage) -> list[tuple[str, dict[str, Any]]]:
    """Return names and arguments of the calls."""
    return [(call["name"], call["args"]) for call in message.tool_calls]
