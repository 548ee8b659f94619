"""Bounds of numbers, as people write them and as decimal fractions are meant."""

import json

import pytest
from fakes.objects import saying
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error

CENTS = {"type": "number", "multipleOf": 0.01}


@given(st.integers(-(10**6), 10**6), st.integers(0, 4))
def test_a_decimal_is_a_multiple_of_its_last_digit(number, digits):
    """As it is written: 19.99 was refused for 0.01, as floats divide."""
    step = {"multipleOf": float(f"1e-{digits}")}
    value = json.loads(f"{number}e-{digits}")
    assert validation_error(value, step) is None
    assert validation_error(value, grammar_schema(step)) is None
    assert validation_error(float(f"{number}5e-{digits + 1}"), step)


@pytest.mark.parametrize("value", ["3", True, None, [], 10**400])
def test_what_is_no_number_is_no_multiple_either(value):
    """Nor is one that nobody can divide an error of Python's own."""
    assert validation_error(value, {"multipleOf": 0.3}) is None


def test_a_price_is_taken_and_half_a_cent_is_not(serve):
    """The server's own check refused the price, so that the answer was asked for in vain."""
    schema = {"title": "p", "type": "object", "properties": {"price": CENTS}}
    model, dialect = serve(saying({"price": 19.99}))
    assert model.with_structured_output(schema).invoke("go") == {"price": 19.99}
    sent = dialect.requests[0]["response_format"]["json_schema"]["schema"]
    assert sent["properties"]["price"] == {"type": "number"}
    model, _ = serve(saying({"price": 19.995}))
    with pytest.raises(StructuredOutputError, match=r"19\.995"):
        model.with_structured_output(schema).invoke("go")


@pytest.mark.parametrize("draft", [{}, {"$schema": "http://json-schema.org/draft-04/schema#"}])
@pytest.mark.parametrize(
    ("schema", "fits", "misfits"),
    [
        ({"minimum": 0, "exclusiveMinimum": True}, 1, 0),
        ({"maximum": 9, "exclusiveMaximum": True}, 5, 9),
        ({"minimum": 0, "exclusiveMinimum": False}, 0, -1),
    ],
)
def test_an_exclusive_bound_may_be_said_by_a_word(draft, schema, fits, misfits):
    """As OpenAPI 3.0 does; 1 was refused, as no more than `True`."""
    schema = {**draft, "type": "integer", **schema}
    assert validation_error(fits, schema) is None
    assert validation_error(fits, grammar_schema(schema)) is None
    assert validation_error(misfits, schema) is not None
    assert "exclusiveMinimum" not in grammar_schema(schema)


def test_an_exclusive_bound_that_is_a_number_is_one():
    """As today's drafts write it."""
    schema = {"exclusiveMinimum": 0, "exclusiveMaximum": 2}
    fitting = [value for value in (0, 1, 2) if validation_error(value, schema) is None]
    assert fitting == [1]
