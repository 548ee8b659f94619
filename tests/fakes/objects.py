"""Classes that answers become, for tests of structured output."""

import enum
import json
from typing import Annotated, Any, Literal, TypedDict

from fakes.reply import Reply
from pydantic import BaseModel


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    x: int
    y: str | None = None


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Person(TypedDict):
    """A person."""

    name: Annotated[str, ..., "The name."]
    age: int


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


def saying(value: Any, **more: Any) -> Reply:
    """Return a reply that says a value as JSON."""
    return Reply(text=json.dumps(value), **more)


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {}},
    },
}
"""A tool without parameters, in the server's form."""
