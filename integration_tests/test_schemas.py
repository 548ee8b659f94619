"""Ordinary pydantic types, through the server's real grammar."""

import enum
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """A point."""

    x: int = Field(ge=0, le=9)
    note: Annotated[str, Field(max_length=8)] | None = None


class Tree(BaseModel):
    """A tree, two levels of it at most in what is asked for."""

    value: int = Field(ge=0, le=9)
    children: list["Tree"] = Field(default=[], max_length=1)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: int = Field(ge=0, le=9)


Digit = Annotated[int, Field(ge=0, le=9)]
TYPES: dict[str, Any] = {
    "set": Annotated[set[Digit], Field(max_length=3)],
    "path": Path,
    "optional": Digit | None,
    "union": Digit | bool,
    "nested": Inner,
    "list": Annotated[list[Inner], Field(max_length=2)],
    "enum": Colour,
    "literal": Literal["yes", "no"],
    "pattern": Annotated[str, Field(pattern=r"^[a-z]{2,5}$")],
    "look-ahead": Annotated[str, Field(max_length=6, json_schema_extra={"pattern": "^(?=a)a.*$"})],
    "date": date,
    "decimal": Annotated[Decimal, Field(ge=0, le=9)],
    "discriminated": Annotated[Cat | Dog, Field(discriminator="kind")],
    "tuple": tuple[Digit, bool],
    "dict": dict[Literal["a", "b"], Digit],
    "tree": Tree,
}


@pytest.fixture(params=["batched", "simple"])
def model(request: pytest.FixtureRequest, chat: Callable[..., ChatVllmMlx]) -> ChatVllmMlx:
    """SmolLM2 on each engine."""
    return chat(engine=request.param, max_tokens=120)


@pytest.mark.parametrize("name", TYPES)
def test_an_ordinary_type_comes_back_as_an_instance(model: ChatVllmMlx, name: str):
    """Whatever the model would rather say."""
    wanted = create_model("Answer", value=(TYPES[name], ...))
    found = model.with_structured_output(wanted).invoke("Give any value.")
    assert isinstance(found, wanted)
    assert wanted.model_validate_json(found.model_dump_json()) == found
