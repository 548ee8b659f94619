"""A schema that is written by hand has JSON's types, or is refused where it is given."""

from typing import Any

import pytest
from fakes.calls import add
from fakes.reply import Reply, helpful

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.schema import json_schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error

PYTHONS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "None": "null",
    "STRING": "string",
    "OBJECT": "object",
}


def places(kind: Any) -> list[dict[str, Any]]:
    """Return schemas that have a type in each place where one can stand."""
    part = {"type": kind}
    return [
        part,
        {"type": "object", "properties": {"a": part}},
        {"type": "array", "items": part},
        {"type": "array", "prefixItems": [{"type": "string"}, part]},
        {"anyOf": [{"type": "null"}, part]},
        {"type": ["null", kind]},
        {"type": "object", "properties": {}, "additionalProperties": part},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": part}}}},
        {"type": "object", "patternProperties": {"^a": part}},
    ]


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(("wrong", "right"), PYTHONS.items())
def test_a_type_of_pythons_is_answered_with_that_of_json(serve, wrong, right, method):
    """The server would say so after it has been started, and others would take any answer."""
    model, _ = serve()
    part = {"type": "object", "properties": {"a": {"type": wrong}}}
    wrapped = [{"name": "f", "parameters": part}, {"name": "f", "schema": part}]
    for schema in [*places(wrong), *wrapped]:
        with pytest.raises(ConfigurationError, match=f"`'?{wrong}'?`") as caught:
            model.with_structured_output(schema, method=method)
        assert f"`{right}`" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["date", "any", 5, None, {"type": "string"}, [[]]])
def test_a_type_that_is_nothing_is_answered_with_all(kind):
    """Whatever stands in its place."""
    for schema in places(kind):
        with pytest.raises(ConfigurationError, match="type") as caught:
            json_schema(schema)
        assert "boolean" in (caught.value.hint or "")


def test_a_form_of_openais_is_answered_with_the_method(serve):
    """Whoever wants any object needs no schema."""
    model, _ = serve()
    with pytest.raises(ConfigurationError, match="json_object") as caught:
        model.with_structured_output({"type": "json_object"})
    assert "json_mode" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", sorted({*PYTHONS.values()}))
def test_jsons_own_types_are_taken(kind):
    """In every place."""
    for schema in places(kind):
        assert grammar_schema(json_schema(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"type": {"type": "string"}, "items": {"type": "null"}}},
        {"type": "object", "properties": {"a": {"enum": [{"type": "car"}]}}},
        {"type": "object", "properties": {"a": {"const": {"type": "car"}}}},
        {"type": "object", "properties": {"a": {"type": "object", "default": {"type": "car"}}}},
        {"type": "object", "properties": {"a": {}, "b": True}, "examples": [{"type": "car"}]},
    ],
)
def test_what_is_not_a_type_may_be_called_so(serve, schema):
    """A property, a value, an example."""
    model, _ = serve(helpful)
    assert json_schema(schema) == schema
    assert model.with_structured_output(schema)


ODD = ["any", "datetime", "STRING", "int", 5, None, ["str", "null"], ["date", "null"]]


@pytest.mark.parametrize("kind", ODD, ids=str)
def test_a_tool_with_any_type_can_be_forced(serve, kind):
    """Tools of MCP servers come as they are; what else they say holds all the same."""
    parameters = {
        "type": "object",
        "properties": {"when": {"type": kind}, "count": {"type": "integer"}},
        "required": ["count"],
    }
    tool = {"type": "function", "function": {"name": "find", "parameters": parameters}}
    first = Reply(calls=[("find", {"when": "now"})])
    model, dialect = serve(lambda body: helpful(body) if "response_format" in body else first)
    found = model.bind_tools([tool, add], tool_choice="any").invoke("go")
    assert found.tool_calls[0]["name"] == "find"
    assert "count" in found.tool_calls[0]["args"]
    sent = dialect.requests[1]["response_format"]["json_schema"]["schema"]
    assert types_in(sent) <= {*PYTHONS.values()}


def types_in(schema: Any) -> set[str]:
    """Return all types that a grammar is asked for."""
    if isinstance(schema, list):
        return set().union(*map(types_in, schema))
    if not isinstance(schema, dict):
        return set()
    kinds = schema.get("type", [])
    own = set(kinds) if isinstance(kinds, list) else {kinds} if isinstance(kinds, str) else set()
    return own.union(*map(types_in, schema.values()))


@pytest.mark.parametrize("kind", ["date", "any", 5, None, ["date", "null"]], ids=str)
def test_a_type_that_nobody_knows_forbids_nothing(kind):
    """Also under words that a part forbids by what fits it, and in a part of another draft."""
    part = {"type": kind}
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", **part}
    words = [part, draft, {"oneOf": [part, {}]}, {"oneOf": [part, {"type": "string"}]}]
    words += [{"not": part}, {"not": {"properties": {"b": part}}}, {"if": part, "then": False}]
    for word in words:
        schema = {"type": "object", "properties": {"a": word}}
        for value in ("x", 1, None, {}):
            assert validation_error({"a": value}, schema) is None


@pytest.mark.parametrize(("wrong", "right"), PYTHONS.items())
def test_a_type_of_pythons_or_geminis_is_checked_as_jsons(wrong, right):
    """As the grammar is asked for it."""
    values = ["x", 1, 1.5, True, [], {}, None]
    for schema, plain in zip(places(wrong), places(right), strict=True):
        for value in (*values, *({"a": value} for value in values), *([v, v] for v in values)):
            fits = [validation_error(value, found) is None for found in (schema, plain)]
            assert fits[0] == fits[1]
    choice = {"oneOf": [{"type": wrong}, {"type": "array" if right == "object" else "OBJECT"}]}
    assert sum(validation_error(value, choice) is None for value in values) >= 1
