"""What pydantic writes of a type fits the grammar of the type, and what it refuses does not."""

import json
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone
from enum import IntEnum
from typing import Annotated, Any, Generic, TypedDict, TypeVar

import pytest
from fakes.objects import saying
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime, NaiveDatetime, create_model

from langchain_car_vllm.wire.exchange.forced_call import calls_schema
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.schema import json_schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import openai_tools

ZONES = st.builds(timezone, st.integers(-14 * 60, 14 * 60).map(lambda n: timedelta(minutes=n)))
LOCAL, ZONED = st.datetimes(), st.datetimes(timezones=ZONES)
TIMES: dict[str, tuple[Any, st.SearchStrategy[Any], list[str]]] = {
    "local": (NaiveDatetime, LOCAL, ["2024-05-01T09:00:00Z", "now"]),
    "zoned": (AwareDatetime, ZONED, ["2024-05-01T09:00:00", "Z", "2024-05-01T09:00:00+29:00"]),
    "either": (datetime, LOCAL | ZONED, ["2024-05-01", "2024-13-01T09:00:00", "today"]),
    "time": (time, st.times(), ["09:00", "24:00:00", "noon"]),
    "duration": (timedelta, st.timedeltas(), ["P", "PT", "-", "1D", "P1DT"]),
}
Item = TypeVar("Item")


class Rank(IntEnum):
    """A number with a name."""

    FIRST = 1
    SECOND = 2


@dataclass
class Box(Generic[Item]):
    """Holds something."""

    item: Item


class Order(TypedDict):
    """An order."""

    count: Annotated[int, 5, "How many."]
    note: Annotated[str | None, None, "What else."]
    name: Annotated[str, ..., "What."]


@pytest.mark.parametrize("name", TIMES)
@given(data=st.data())
def test_a_time_of_any_kind_fits(name, data):
    """With a zone or without one, with fractions and signs; the server's formats know fewer."""
    kind, values, others = TIMES[name]
    model = create_model("Answer", field=(kind, ...))
    schema = grammar_schema(json_schema(model))
    written = json.loads(model(field=data.draw(values)).model_dump_json())
    assert validation_error(written, schema) is None
    assert validation_error(written, json_schema(model)) is None
    assert all(validation_error({"field": other}, schema) for other in others)


def test_a_tool_takes_the_same_times():
    """Its arguments would have a zone, always, which local times cannot be compared with."""

    def wait(until: datetime) -> None:
        """Wait."""

    [tool] = openai_tools([wait])
    schema = calls_schema({"wait": tool["function"]}, single=True)
    call = {"name": "wait", "arguments": {"until": "2024-05-01T09:00:00"}}
    assert "format" not in json.dumps(schema)
    assert validation_error(call, schema) is None


def test_keys_that_are_numbers_are_texts(serve):
    """As all keys of JSON are: no key would have fitted."""
    model_class = create_model("Answer", field=(dict[Rank, int], ...))
    value, other = {"field": {"1": 5}}, {"field": {"3": 5}}
    for schema in (json_schema(model_class), grammar_schema(json_schema(model_class))):
        assert validation_error(value, schema) is None
        assert validation_error(other, schema)
    model, _ = serve(saying(value))
    assert model.with_structured_output(model_class).invoke("go").field == {Rank.FIRST: 5}


@pytest.mark.parametrize("allowed", [{"type": "integer"}, {"type": "number", "minimum": 1}])
def test_no_key_is_refused_for_being_a_text(allowed):
    """The grammar lets any key through, and the check of the server would refuse them all."""
    schema = {"type": "object", "propertyNames": allowed}
    assert validation_error({"1": 5}, schema) is None
    assert validation_error({"one": 5}, schema)
    assert validation_error({"1": 5}, grammar_schema(schema)) is None


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_dataclass_may_have_arguments(serve, method):
    """As a pydantic class may."""
    model, _ = serve()
    answer = model.with_structured_output(Box[int], method=method).invoke("go")
    assert isinstance(answer.item, int)


def test_the_default_of_a_key_is_told():
    """In LangChain's form, in which it stands before the description."""
    parts = json_schema(Order)["properties"]
    assert (parts["count"]["default"], parts["count"]["description"]) == (5, "How many.")
    assert parts["note"]["default"] is None
    assert "default" not in parts["name"]
    assert json_schema(Order)["required"] == ["name"]
