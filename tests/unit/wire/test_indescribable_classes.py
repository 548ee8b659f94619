"""Of a class that cannot be described it is told what in it stands in the way."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError

MODEL = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1")


class Custom:
    """A class of a program's own."""


class Calls(BaseModel):
    """It holds a function."""

    call: Callable[[int], int]


class Holds(BaseModel):
    """It holds an object."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    held: Custom


class Outer(BaseModel):
    """What stands in the way lies deeper."""

    inner: list[Holds]


class Lacks(BaseModel):
    """It names what is nowhere."""

    missing: "Nowhere"  # noqa: F821


class Row(TypedDict):
    """A row with an object in it."""

    held: Custom


@dataclasses.dataclass
class Data:
    """A dataclass with an object in it."""

    held: Custom


def held(x: Custom) -> str:
    """It takes an object."""


def lacks(x: "Nowhere") -> str:  # noqa: F821
    """It takes what is nowhere."""


GIVEN: list[tuple[Any, str]] = [
    (Calls, "Callable"),
    (Holds, "Custom"),
    (Outer, "Custom"),
    (Lacks, "Nowhere"),
    (Row, "Custom"),
    (Data, "Custom"),
]


@pytest.mark.parametrize(("kind", "cause"), GIVEN, ids=lambda given: getattr(given, "__name__", ""))
def test_the_cause_is_told_and_no_class_is_asked_for(kind, cause):
    """Who gave a pydantic class was told to give one."""
    for give in (
        lambda: MODEL.with_structured_output(kind),
        lambda: MODEL.with_structured_output(kind, method="function_calling"),
        lambda: MODEL.bind(response_format=kind).invoke("go"),
        lambda: MODEL.bind_tools([kind]),
    ):
        with pytest.raises(ConfigurationError) as caught:
            give()
        told = str(caught.value)
        assert cause in told
        assert kind.__name__ in told
        assert "give a pydantic class" not in told
        assert "errors.pydantic.dev" not in told


@pytest.mark.parametrize(
    ("given", "name", "cause"),
    [
        (held, "held", "Custom"),
        (lacks, "lacks", "Nowhere"),
        (Lacks, "Lacks", "Nowhere"),
        ({"name": "open", "takes": {"a": {}}}, "open", "takes"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_of_many_tools_it_is_told_which(given, name, cause):
    """Whoever binds those of a whole server looks for one."""
    fine = {"title": "fine", "type": "object", "properties": {}}
    with pytest.raises(ConfigurationError, match=f"^the tool `{name}` cannot be") as caught:
        MODEL.bind_tools([fine, given, fine])
    assert cause in caught.value.message


def test_an_instance_is_answered_with_its_class():
    """A pair of brackets too many."""

    class Moon(BaseModel):
        name: str = "Io"

    with pytest.raises(ConfigurationError) as caught:
        MODEL.with_structured_output(Moon())
    assert caught.value.hint == "give the class itself: `Moon`"
