"""Objects that a schema puts together from parts: what fits it can be written under the grammar."""

import copy
import itertools
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from langchain_car_vllm.wire.exchange.forced_call import calls_schema
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error


def an_object(**properties):
    return {"type": "object", "properties": properties, "required": [*properties]}


NUMBER = {"type": "integer"}
BASE = an_object(id=NUMBER)
MORE = an_object(name={"type": "string"})
WHOLE = {"id": 1, "name": "x"}
DEFS = {"$defs": {"Base": BASE, "Alias": {"$ref": "#/$defs/Base"}}}
TOGETHER = {
    "inherited": {**DEFS, "allOf": [{"$ref": "#/$defs/Base"}, MORE]},
    "inherited by another name": {**DEFS, "allOf": [{"$ref": "#/$defs/Alias"}, MORE]},
    "two references": {
        "$defs": {"A": BASE, "B": MORE},
        "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
    },
    "beside a reference": {**DEFS, "$ref": "#/$defs/Base", **MORE},
    "one of several": {**BASE, "anyOf": [MORE, an_object(other=NUMBER)]},
    "exactly one of several": {**BASE, "oneOf": [MORE, an_object(other=NUMBER)]},
    "on a condition": {**BASE, "if": {"properties": {"id": {"const": 1}}}, "then": MORE},
    "on another condition": {**BASE, "if": an_object(id={"const": 2}), "else": MORE},
    "with a key": {**BASE, "dependentSchemas": {"id": MORE}},
    "in definitions of its own": {
        "$defs": {"Two": {**BASE, "anyOf": [MORE]}},
        "$ref": "#/$defs/Two",
    },
}


@pytest.mark.parametrize("schema", TOGETHER.values(), ids=TOGETHER)
@pytest.mark.parametrize("inside", [False, True])
def test_a_part_takes_the_keys_of_the_others(schema, inside):
    """As schemas of OpenAPI and TypeScript say it; nothing at all fitted what was sent."""
    value = WHOLE
    if inside:
        defs = schema.get("$defs", {})
        left = {key: part for key, part in schema.items() if key != "$defs"}
        schema, value = {"$defs": defs, **an_object(it=left)}, {"it": WHOLE}
    before = copy.deepcopy(schema)
    assert validation_error(value, schema) is None
    assert validation_error(value, grammar_schema(schema)) is None
    assert schema == before


@pytest.mark.parametrize(
    "schema",
    [
        {**DEFS, "$ref": "#/$defs/Base", "description": "Alone."},
        {**DEFS, "allOf": [{"$ref": "#/$defs/Base"}], "default": {}},
        {**DEFS, "anyOf": [{"$ref": "#/$defs/Base"}, {"type": "null"}]},
        {**BASE, "anyOf": [{"required": ["id"]}, {"required": ["name"]}]},
    ],
)
def test_what_is_no_part_of_another_stays_closed(schema):
    """A small model would go on with keys that nobody asked for."""
    assert validation_error({"id": 1, "more": 2}, grammar_schema(schema)) is not None


def test_a_constant_that_looks_like_a_schema_stays_as_it_is():
    """It is a value."""
    value = {"properties": {"a": 1}, "anyOf": [{"properties": {}}]}
    sent = grammar_schema(an_object(it={"const": value}, of={"enum": [value]}))
    assert [part for it in sent["properties"].values() for part in it.values()] == [value, [value]]


KEYS = "abc"
plain = st.fixed_dictionaries(
    {"properties": st.dictionaries(st.sampled_from(KEYS), st.just(NUMBER), min_size=1)},
    optional={"required": st.lists(st.sampled_from(KEYS), max_size=2, unique=True)},
)
reference = st.sampled_from([{"$ref": "#/$defs/One"}, {"$ref": "#/$defs/Two"}])


def combined(part):
    several = st.lists(part, min_size=1, max_size=2)
    return st.builds(
        lambda own, words: {**own, **words},
        st.just({}) | plain,
        st.fixed_dictionaries(
            {},
            optional={
                "allOf": several,
                "anyOf": several,
                "not": plain,
                "then": part,
                "else": part,
                "if": plain,
                "dependentSchemas": st.dictionaries(st.sampled_from(KEYS), part, max_size=1),
            },
        ),
    )


schemas = st.builds(
    lambda root, one, two: {**root, "$defs": {"One": one, "Two": two}},
    combined(st.recursive(plain | reference, combined, max_leaves=4)),
    st.recursive(plain, combined, max_leaves=3),
    plain,
)
VALUES = [
    {key: n for key, n in zip(KEYS, numbers, strict=True) if n is not None}
    for numbers in itertools.product([None, 1], repeat=len(KEYS))
]


@given(schemas)
def test_what_can_be_answered_can_be_answered_under_the_grammar(schema):
    """However its parts are put together."""
    fitting = [value for value in VALUES if validation_error(value, schema) is None]
    assume(fitting)
    sent = grammar_schema(schema)
    Draft202012Validator.check_schema(sent)
    assert any(validation_error(value, sent) is None for value in fitting)


NAMES = ["Box[int]", "List`1", "Größe", "a/b", "a~b", "50%", "with space"]


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_of_any_name_can_be_referred_to(name):
    """The grammar refuses an address with a sign that none has, as generic types of Java have."""
    for written in {name, name.replace("~", "~0").replace("/", "~1")} - {"a/b", "a~b", "50%"}:
        schema = {"$defs": {name: BASE}, **an_object(it={"$ref": f"#/$defs/{written}"})}
        sent = grammar_schema(schema)
        assert sent["properties"]["it"]["$ref"].isascii()
        assert not set(sent["properties"]["it"]["$ref"]) & set("[]`%~ ")
        assert validation_error({"it": {"id": 1}}, sent) is None
        assert validation_error({"it": {"id": "x"}}, sent) is not None
    tree = an_object(of={"type": "array", "items": {"$ref": "#"}})
    sent = calls_schema({name: {"name": name, "parameters": tree}}, single=True)
    call = {"name": name, "arguments": {"of": [{"of": []}]}}
    assert validation_error(call, sent) is None
    assert json.dumps(sent["properties"]["arguments"]).isascii()


def test_a_size_may_be_written_as_a_fraction():
    """Which JSON does not tell apart, and the grammar does."""
    sent = grammar_schema(an_object(a={"type": "array", "minItems": 1.0, "maxItems": 2.0}))
    assert repr(sent["properties"]["a"]["minItems"]) == "1"
