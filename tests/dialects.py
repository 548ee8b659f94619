"""The ways in which servers of other kinds are asked, when they are recorded and when replayed."""

from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)


def weather(city: str) -> str:
    """Get the weather in a city."""
    return city


def answer(llm: Any) -> AIMessage:
    """Return a whole answer."""
    return llm.invoke(QUESTION)


def stream(llm: Any) -> AIMessage:
    """Return the sum of a stream."""
    return _sum(llm.stream(QUESTION))


def tools(llm: Any) -> AIMessage:
    """Return the sum of a stream while a tool is offered."""
    return _sum(llm.bind_tools([weather]).stream("How is the weather in Paris?"))


def structured(llm: Any) -> Any:
    """Return an object."""
    return llm.with_structured_output(City).invoke("Name a city.")


def _sum(chunks: Any) -> AIMessageChunk:
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert total is not None
    return total


SCENARIOS: dict[str, Callable[[Any], Any]] = {
    "answer": answer,
    "stream": stream,
    "tools": tools,
    "structured": structured,
    "unknown model": answer,
}
