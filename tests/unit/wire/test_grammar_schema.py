"""From the types users write to the schema that the server's grammar takes."""

import json
import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import pytest
from fakes.objects import Cat, Colour, Dog, Inner, Tree, saying
from fakes.reply import example
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, create_model

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.patterns import weaken_pattern
from langchain_car_vllm.wire.request.schema import json_schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import openai_tools

TYPES = {
    "set": set[int],
    "path": Path,
    "secret": SecretStr,
    "bytes": bytes,
    "optional": int | None,
    "union": int | str,
    "nested": Inner,
    "list": list[Inner],
    "tree": Tree,
    "enum": Colour,
    "literal": Literal["a", "b"],
    "date": date,
    "uuid": UUID,
    "decimal": Decimal,
    "duration": timedelta,
    "dict": dict[str, int],
    "tuple": tuple[int, str],
    "discriminated": Annotated[Cat | Dog, Field(discriminator="kind")],
    "constrained": Annotated[int, Field(ge=3, le=9)],
}


VALUES = {"duration": "P1D", "decimal": "1.5", "uuid": "12345678123456781234567812345678"}


@pytest.mark.parametrize("name", TYPES)
def test_ordinary_pydantic_types_work(serve, name):
    """The schema goes out digested and the answer comes back as the class."""
    model_class = create_model("Answer", field=(TYPES[name], ...))
    value = {"field": VALUES.get(name) or example(*[json_schema(model_class)] * 2)["field"]}
    model, dialect = serve(saying(value))
    answer = model.with_structured_output(model_class).invoke("go")
    assert answer == model_class.model_validate_json(json.dumps(value))
    schema = dialect.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["x-guidance"] == {"lenient": True, "coerce_one_of": True}
    assert schema["additionalProperties"] is False


def test_a_class_without_a_schema_is_refused(serve):
    """A function cannot be written as JSON."""

    class Strange(BaseModel):
        call: Callable[[], None]

    model, _ = serve()
    with pytest.raises(ConfigurationError, match="no JSON schema"):
        model.with_structured_output(Strange)


class TestGrammarSchema:
    """What the grammar cannot take is moved, closed or dropped."""

    def test_definitions_move_to_the_root_and_keep_their_meaning(self):
        """An inner definition shadows an outer one of the same name, here as there."""
        schema = {
            "$defs": {"T": {"type": "string"}},
            "type": "object",
            "properties": {
                "outer": {"$ref": "#/$defs/T"},
                "inner": {
                    "type": "object",
                    "$defs": {"T": {"type": "integer"}},
                    "properties": {"t": {"$ref": "#/$defs/T"}},
                },
            },
        }
        found = grammar_schema(schema)
        good = {"outer": "a", "inner": {"t": 1}}
        assert validation_error(good, found) is None
        assert validation_error({"outer": "a", "inner": {"t": "x"}}, found)
        assert "$defs" not in found["properties"]["inner"]

    @pytest.mark.parametrize(
        ("pattern", "left"),
        [
            ("^(?=.*a)b", "^b"),
            ("^(?!x(y|z)*)*[a-z]+$", "^[a-z]+$"),
            ("(?<=a)b", "b"),
            (r"\bword\b", "word"),
            (r"[b(?=]\(?=x", r"[b(?=]\(?=x"),
            (r"[\b]x", None),
            (r"^[\w-]+$", "^[\\w\\u0080-\U0010ffff-]+$"),
            (r"^\d\w", "^\\d[\\w\\u0080-\U0010ffff]"),
            (r"[^\w\d]", "[^0-9A-Z_a-z0-9]"),
            (r"^a\Z", "^a$"),
            ("^a{,5}$", "^a{0,5}$"),
            (r"^\p{L}{2,4}$", None),
            (r"\Aa{", r"^a\{"),
            ("a$b", None),
            ("(^a$|^b)|c$", "(^a$|^b)|c$"),
            ("[a&&b]", None),
            ("(?i)a", None),
            ("a{2000}", None),
            ("^(?:a|b){2}$", "^(?:a|b){2}$"),
            ("(?<!a)", None),
            (r"(a)\1", None),
            ("(a", None),
            ("a)", None),
        ],
    )
    def test_of_a_pattern_the_grammar_gets_what_it_can_read(self, pattern, left):
        """The answer is checked against the original."""
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
        assert grammar_schema(schema)["properties"]["a"].get("pattern") == left

    @given(
        st.lists(
            st.sampled_from(
                [
                    *(*"abc|().^$+*?", "(?=", "(?!", "(?<=", "(?:", r"\b", r"\("),
                    *("[a(]", "[^)]", "{2}", r"\w", r"\W", r"\D", r"[\w-]", r"[^\w]"),
                    *(r"[^\W\d_]", r"[^\D]", r"[\W-.]"),
                ]
            ),
            max_size=8,
        ),
        st.lists(st.text("abc()-5_é你𠮷—", max_size=4), max_size=5),
        st.sampled_from([re.UNICODE, re.ASCII]),
    )
    def test_what_fits_a_pattern_fits_what_is_left_of_it(self, pieces, texts, letters):
        """Look-around only ever forbids; for the grammar the letters are those of ASCII."""
        try:
            pattern = re.compile("".join(pieces))
        except re.error:
            return
        left = weaken_pattern(pattern.pattern)
        for text in texts:
            if left is not None and pattern.search(text):
                assert re.search(left, text, letters)

    def test_a_dictionary_with_named_keys_gets_no_others(self):
        """The grammar passes over `propertyNames`."""
        wanted = create_model(
            "Answer", a=(dict[Literal["x", "y"], int], ...), b=(dict[Colour, int], ...)
        )
        found = grammar_schema(json_schema(wanted))
        for name, keys in (("a", {"x", "y"}), ("b", {"red", "blue"})):
            part = found["properties"][name]
            assert part["properties"].keys() == keys
            assert part["additionalProperties"] is False
        assert validation_error({"a": {"x": 1}, "b": {"red": 2}}, found) is None

    def test_a_decimal_is_a_number(self):
        """The text that pydantic takes as well would be any text."""
        wanted = create_model("Answer", a=(Decimal, ...), b=(Decimal | None, ...))
        found = grammar_schema(json_schema(wanted))["properties"]
        assert found["a"] == {"type": "number"}
        assert {"type": "string"} not in found["b"]["anyOf"]
        text = '{"a": 1.10, "b": null}'
        assert wanted.model_validate_json(text).a == Decimal("1.10")

    def test_a_property_may_be_named_like_a_word_of_the_schema(self):
        """`pattern`, `$ref` and `properties` are ordinary names for a property."""
        schema = {
            "type": "object",
            "properties": {
                "pattern": {"type": "string"},
                "properties": {"type": "object", "properties": {"items": {"type": "string"}}},
            },
        }
        assert set(grammar_schema(schema)["properties"]) == {"pattern", "properties"}

    def test_parts_of_a_whole_stay_open(self):
        """Closing one part of `allOf` would forbid the keys of the others."""
        parts = [
            {"type": "object", "properties": {"a": {"type": "integer"}}},
            {"type": "object", "properties": {"b": {"type": "integer"}}},
        ]
        assert validation_error({"a": 1, "b": 2}, grammar_schema({"allOf": parts})) is None

    def test_a_reference_to_elsewhere_is_refused(self):
        """Nothing is fetched."""
        with pytest.raises(ConfigurationError, match="outside"):
            grammar_schema({"$ref": "https://example.org/schema.json"})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Missing"},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/Missing"}}, "$defs": {"A": {}}},
        {"type": "object", "properties": {"a": {"items": [{"$ref": "#/properties/b"}]}}},
        {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#/properties/a/anyOf/1"}]}}},
        {"$defs": {"A": {"$ref": "#/definitions/B"}}, "$ref": "#/$defs/A"},
    ],
)
def test_a_reference_to_nothing_is_told_before_anything_is_sent(schema):
    """It names what is missing, in structured output and in a tool alike."""
    with pytest.raises(ConfigurationError, match=r"refers to `#/.*`, which is not in it"):
        grammar_schema(schema)
    if "$ref" in schema and "A" not in schema.get("$defs", ()):
        with pytest.raises(ConfigurationError, match="which is not in it"):
            openai_tools([{"title": "tool", "description": "x", **schema}])


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"a/b": {"type": "null"}, "c": {"$ref": "#/properties/a~1b"}},
        },
        {"type": "object", "properties": {"ä": {}, "c": {"$ref": "#/properties/%C3%A4"}}},
        {"type": "array", "items": [{"type": "null"}, {"$ref": "#/items/0"}]},
        {"type": "object", "properties": {"$ref": {"type": "string"}}},
        {"const": {"$ref": "#/nowhere"}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
    ],
)
def test_references_to_what_is_there_are_none_to_nothing(schema):
    """Escaped, moved by the conversion, or not meant as one."""
    assert grammar_schema(schema)


@pytest.mark.parametrize(
    "words",
    [
        {"additionalProperties": {"type": "integer"}},
        {"patternProperties": {"^a": {"type": "integer"}}},
        {"not": {"type": "string"}},
        {"description": "Anything."},
    ],
)
def test_a_schema_is_told_by_its_title_too(words):
    """Whatever words follow; they were left out, and any object was an answer."""
    schema = {"title": "Ages", **words}
    assert json_schema(schema) == schema


def test_a_tool_with_a_title_is_still_a_tool():
    """What it takes stands under its own word."""
    takes = {"type": "object", "properties": {"a": {"type": "integer"}}}
    found = json_schema({"title": "T", "name": "f", "parameters": takes})
    assert found["properties"] == takes["properties"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_schema_may_have_several_types(serve, method):
    """LangChain's tracing cannot read such a one, which ended the call."""
    takes = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema = {"title": "Found", "type": ["object", "null"], **takes}
    model, _ = serve()
    assert model.with_structured_output(schema, method=method).invoke("go") == {"a": 3}


@pytest.mark.parametrize(
    "odd", [{"type": 1, "parameters": None}, {"toolSpec": None}, {"name": "f", "parameters": 5}]
)
def test_what_langchain_cannot_describe_is_a_typed_error(odd):
    """Whatever it raises for it."""
    with pytest.raises(ConfigurationError):
        json_schema(odd)
