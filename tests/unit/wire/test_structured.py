"""Structured output: schemas the grammar takes, objects the user gets, errors where it breaks."""

import asyncio
import enum
import json
import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict
from uuid import UUID

import pytest
from fakes.dialect import Reply, example, helpful
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from pydantic import BaseModel, ConfigDict, Field, SecretStr, create_model

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.request.schema import complaint, digested, json_schema, weakened


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


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


def saying(value: Any, **more: Any) -> Reply:
    """Return a reply that says a value as JSON."""
    return Reply(text=json.dumps(value), **more)


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


def test_a_constrained_answer_is_asked_for_without_thinking(serve):
    """The server's reasoning parser takes the beginning of a streamed JSON for reasoning else."""
    model, dialect = serve(reasoning=True, thinking_budget=9)
    model.with_structured_output(Joke).invoke("go")
    sent = dialect.requests[0]
    assert sent["enable_thinking"] is False
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert "thinking_token_budget" not in sent


def test_a_strict_class_reads_json_as_json(serve):
    """A date is text in JSON, and a strict class knows that."""
    strict = create_model("Answer", __config__=ConfigDict(strict=True), day=(date, ...))
    model, _ = serve(saying({"day": "2026-01-31"}))
    assert model.with_structured_output(strict).invoke("go").day == date(2026, 1, 31)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_method_gives_the_object(serve, method, streamed):
    """Constrained, called or in JSON mode, whole or streamed."""
    model, _ = serve()
    chain = model.with_structured_output(Joke, method=method)
    answer = list(chain.stream("go"))[-1] if streamed else chain.invoke("go")
    assert isinstance(answer, Joke)


def test_json_mode_is_constrained_to_the_schema_where_there_is_one(serve):
    """Free JSON lets a small model write on until its tokens run out."""
    model, dialect = serve()
    model.with_structured_output(Joke, method="json_mode").invoke("go")
    model.with_structured_output(method="json_mode").invoke("go")
    bound, free = (body["response_format"] for body in dialect.requests)
    assert bound["json_schema"]["schema"]["properties"].keys() == Joke.model_fields.keys()
    assert free == {"type": "json_object"}


def test_a_typed_dict_and_a_schema_give_dicts(serve):
    """And a dict that does not fit is refused, which LangChain's own parser would not do."""
    model, _ = serve(saying({"name": "Ann", "age": 7}))
    assert model.with_structured_output(Person).invoke("go") == {"name": "Ann", "age": 7}
    schema = {"title": "P", "type": "object", "properties": {"age": {"type": "string"}}}
    with pytest.raises(StructuredOutputError, match="age: 7 is not of type 'string'"):
        model.with_structured_output(schema).invoke("go")


def test_partial_objects_arrive_while_streaming(serve):
    """A dict grows key by key, as far as the parser allows."""
    model, _ = serve(Reply(pieces=['{"name": "A', 'nn", "a', 'ge": 7}']))
    parts = list(model.with_structured_output(Person).stream("go"))
    assert parts[0] == {"name": "A"}
    assert parts[-1] == {"name": "Ann", "age": 7}


@pytest.mark.parametrize("streamed", [False, True])
def test_langchain_10_a_truncated_answer_names_max_tokens(serve, streamed):
    """The server closes the brackets of what was cut off; the finish reason tells."""
    model, _ = serve(saying({"setup": "Why", "punchline": "B"}, finish="length"))
    chain = model.with_structured_output(Joke)
    with pytest.raises(StructuredOutputError, match="max_tokens") as caught:
        list(chain.stream("go")) if streamed else chain.invoke("go")
    assert isinstance(caught.value, OutputParserException)


def test_langchain_10_include_raw_catches_what_does_not_fit(serve):
    """The raw message, no object, and the error."""
    model, _ = serve(saying({"setup": "Why"}, finish="length"))
    found = model.with_structured_output(Joke, include_raw=True).invoke("go")
    assert found["raw"].text == '{"setup": "Why"}'
    assert found["parsed"] is None
    assert isinstance(found["parsing_error"], StructuredOutputError)


def test_include_raw_catches_what_the_server_refuses(serve):
    """An answer that was cut off may be a 422, with nothing but words."""
    model, _ = serve(Reply(status=422, detail="JSON Schema validation failed: 'punchline'"))
    structured = model.with_structured_output(Joke, include_raw=True)
    for found in (structured.invoke("go"), asyncio.run(structured.ainvoke("go"))):
        assert found["parsed"] is None
        assert isinstance(found["raw"], AIMessage)
        assert isinstance(found["parsing_error"], StructuredOutputError)
        assert "max_tokens" in str(found["parsing_error"])


@pytest.mark.parametrize("form", [Joke, {"type": "json_object"}])
def test_a_mended_answer_is_no_whole_one(serve, form):
    """The server closes the brackets of what ran out of tokens, parser or none."""
    model, _ = serve(saying({"setup": "Why"}, finish="length"))
    with pytest.raises(StructuredOutputError, match="max_tokens") as caught:
        model.bind(response_format=form).invoke("go")
    assert caught.value.llm_output == '{"setup": "Why"}'


WRAPPED = {
    "json_schema": {
        "type": "json_schema",
        "json_schema": {"name": "joke", "strict": True, "schema": Joke.model_json_schema()},
    },
    "named": {"name": "joke", "strict": True, "schema": Joke.model_json_schema()},
    "function": {
        "type": "function",
        "function": {"name": "joke", "strict": True, "parameters": Joke.model_json_schema()},
    },
}


@pytest.mark.parametrize("schema", WRAPPED.values(), ids=WRAPPED)
def test_openais_wrappers_of_a_schema_are_taken_off(serve, schema):
    """The schema within is asked for and checked."""
    model, dialect = serve(helpful)
    found = model.with_structured_output(schema).invoke("go")
    assert set(found) == {"setup", "punchline"}
    form = dialect.requests[0]["response_format"]["json_schema"]
    assert set(form["schema"]["properties"]) == {"setup", "punchline"}
    assert form["strict"] is True
    model, _ = serve(saying({"whatever": []}))
    with pytest.raises(StructuredOutputError):
        model.with_structured_output(schema).invoke("go")


def test_an_element_that_comes_twice_fits_a_set(serve):
    """No grammar keeps a model from repeating itself, and pydantic does not mind."""

    class Tagged(BaseModel):
        tags: set[str] | None

    answer = {"tags": ["a", "a"]}
    model, dialect = serve(saying(answer))
    assert model.with_structured_output(Tagged).invoke("go") == Tagged(tags={"a"})
    assert "uniqueItems" not in json.dumps(dialect.requests)
    agent = create_agent(model, [add], response_format=Tagged)
    assert agent.invoke({"messages": "go"})["structured_response"] == Tagged(tags={"a"})


def test_an_answer_of_a_hundred_thousand_brackets_is_no_answer(serve):
    """Deeper than anybody reads, it is an error like any other."""
    model, _ = serve(Reply(text="[" * 100_000, pieces=["[" * 100_000]))
    for schema in (Joke, Joke.model_json_schema()):
        structured = model.with_structured_output(schema)
        for call in (
            lambda s=structured: s.invoke("go"),
            lambda s=structured: list(s.stream("go")),
        ):
            with pytest.raises(StructuredOutputError):
                call()


def test_a_class_without_a_schema_is_refused(serve):
    """A function cannot be written as JSON."""

    class Strange(BaseModel):
        call: Callable[[], None]

    model, _ = serve()
    with pytest.raises(ConfigurationError, match="no JSON schema"):
        model.with_structured_output(Strange)


def test_invalid_output_of_the_server_is_a_structured_output_error(serve):
    """Its 422 keeps its words and gets the hint."""
    detail = {"error": "invalid_response_format_output", "message": "Failed to parse JSON"}
    model, _ = serve(Reply(status=422, detail=detail))
    with pytest.raises(StructuredOutputError, match="Failed to parse JSON"):
        model.with_structured_output(Joke).invoke("go")


def test_what_is_no_schema_is_refused(serve):
    """Before anything is sent."""
    model, _ = serve()
    with pytest.raises(ConfigurationError):
        model.with_structured_output(42)
    with pytest.raises(ConfigurationError, match="method"):
        model.with_structured_output(Joke, method="yaml")
    with pytest.raises(ConfigurationError, match="schema"):
        model.with_structured_output(None)
    with pytest.raises(ConfigurationError, match="strict"):
        model.with_structured_output(Joke, method="json_mode", strict=True)


@pytest.mark.parametrize("form", [Joke, Person, json_schema(Joke)])
def test_a_class_or_a_schema_is_a_response_format(serve, form):
    """As with ChatOpenAI, `bind` takes what `with_structured_output` takes."""
    model, dialect = serve()
    model.bind(response_format=form).invoke("go")
    sent = dialect.requests[0]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"]["properties"]


def test_what_is_no_response_format_is_refused(serve):
    """The hint shows one."""
    model, _ = serve()
    for form in ("json", 5, {"type": "xml"}):
        with pytest.raises(ConfigurationError, match="response_format") as caught:
            model.invoke("go", response_format=form)
        assert "json_schema" in (caught.value.hint or "")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_call_instead_of_the_object_is_no_broken_object(serve, streamed):
    """With `tools` beside the schema a step may call; the raw message has the call."""
    model, _ = serve()
    tools = [TestAgentStep.TOOL]
    structured = model.with_structured_output(Joke, tools=tools)
    assert (list(structured.stream("go")) if streamed else [structured.invoke("go")]) in (
        [],
        [None],
    )
    both = model.with_structured_output(Joke, tools=tools, include_raw=True).invoke("go")
    assert both["raw"].tool_calls[0]["name"] == "look"
    assert (both["parsed"], both["parsing_error"]) == (None, None)


class TestDigestion:
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
        found = digested(schema)
        good = {"outer": "a", "inner": {"t": 1}}
        assert complaint(good, found) is None
        assert complaint({"outer": "a", "inner": {"t": "x"}}, found)
        assert "$defs" not in found["properties"]["inner"]

    @pytest.mark.parametrize(
        ("pattern", "left"),
        [
            ("^(?=.*a)b", "^b"),
            ("^(?!x(y|z)*)*[a-z]+$", "^[a-z]+$"),
            ("(?<=a)b", "b"),
            (r"\bword\b", "word"),
            (r"[\b(?=]\(?=x", r"[\b(?=]\(?=x"),
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
        assert digested(schema)["properties"]["a"].get("pattern") == left

    @given(
        st.lists(
            st.sampled_from(
                [*"abc|().^$+*?", "(?=", "(?!", "(?<=", "(?:", r"\b", r"\(", "[a(]", "[^)]", "{2}"]
            ),
            max_size=8,
        ),
        st.lists(st.text("abc()", max_size=4), max_size=5),
    )
    def test_what_fits_a_pattern_fits_what_is_left_of_it(self, pieces, texts):
        """Look-around only ever forbids."""
        try:
            pattern = re.compile("".join(pieces))
        except re.error:
            return
        left = weakened(pattern.pattern)
        for text in texts:
            if left is not None and pattern.search(text):
                assert re.search(left, text)

    def test_a_dictionary_with_named_keys_gets_no_others(self):
        """The grammar passes over `propertyNames`."""
        wanted = create_model(
            "Answer", a=(dict[Literal["x", "y"], int], ...), b=(dict[Colour, int], ...)
        )
        found = digested(json_schema(wanted))
        for name, keys in (("a", {"x", "y"}), ("b", {"red", "blue"})):
            part = found["properties"][name]
            assert part["properties"].keys() == keys
            assert part["additionalProperties"] is False
        assert complaint({"a": {"x": 1}, "b": {"red": 2}}, found) is None

    def test_a_decimal_is_a_number(self):
        """The text that pydantic takes as well would be any text."""
        wanted = create_model("Answer", a=(Decimal, ...), b=(Decimal | None, ...))
        found = digested(json_schema(wanted))["properties"]
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
        assert set(digested(schema)["properties"]) == {"pattern", "properties"}

    def test_parts_of_a_whole_stay_open(self):
        """Closing one part of `allOf` would forbid the keys of the others."""
        parts = [
            {"type": "object", "properties": {"a": {"type": "integer"}}},
            {"type": "object", "properties": {"b": {"type": "integer"}}},
        ]
        assert complaint({"a": 1, "b": 2}, digested({"allOf": parts})) is None

    def test_a_reference_to_elsewhere_is_refused(self):
        """Nothing is fetched."""
        with pytest.raises(ConfigurationError, match="outside"):
            digested({"$ref": "https://example.org/schema.json"})


class TestAgentStep:
    """Tools with a `response_format`, as `create_agent` sends them."""

    FORM: ClassVar = {
        "type": "json_schema",
        "json_schema": {"name": "Joke", "schema": json_schema(Joke)},
    }
    TOOL: ClassVar = {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look.",
            "parameters": {"type": "object", "properties": {}},
        },
    }

    def test_langchain_4_a_tool_step_is_plain_tool_calling(self, serve):
        """The server refuses tools with a `response_format`, so it never sees both."""
        model, dialect = serve()
        model.invoke("go", tools=[self.TOOL])
        step = model.invoke("go", tools=[self.TOOL], response_format=self.FORM)
        assert dialect.bodies[0] == dialect.bodies[1]
        assert len(dialect.requests) == 2
        assert [call["name"] for call in step.tool_calls] == ["look"]

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_last_step_ends_in_json(self, serve, streamed):
        """The draft is held back and followed by one constrained request without tools."""
        draft = Reply(text="It is a joke about a moon.", thought="moon")
        model, dialect = serve(lambda body: helpful(body) if "response_format" in body else draft)
        given: dict[str, Any] = {"tools": [self.TOOL], "response_format": self.FORM}
        if streamed:
            chunks = list(model.stream("go", **given))
            text = "".join(chunk.text for chunk in chunks)
            message = chunks[-1]
        else:
            message = model.invoke("go", **given)
            text = message.text
        assert Joke.model_validate_json(text)
        assert message.response_metadata["structured_output_method"] == "grammar"
        assert len(dialect.requests) == 2
        second = dialect.requests[1]
        assert "tools" not in second
        assert second["messages"][:1] == dialect.requests[0]["messages"]
        assert second["messages"][1]["content"] == draft.text
        assert second["messages"][1]["reasoning_content"] == "moon"

    def test_a_draft_that_fits_needs_no_second_request(self, serve):
        """A capable model may answer in JSON by itself."""
        model, dialect = serve(saying({"setup": "a", "punchline": "b"}))
        message = model.invoke("go", tools=[self.TOOL], response_format=self.FORM)
        assert Joke.model_validate_json(message.text)
        assert len(dialect.requests) == 1

    def test_nothing_of_a_cut_off_object_is_streamed(self, serve):
        """It is judged before it goes out."""
        cut = saying({"setup": "a", "punchline": "b"}, finish="length")
        model, _ = serve(lambda body: cut if "response_format" in body else Reply(text="draft"))
        seen = []
        with pytest.raises(StructuredOutputError, match="max_tokens"):
            seen.extend(model.stream("go", tools=[self.TOOL], response_format=self.FORM))
        assert seen == []

    def test_a_cut_off_object_is_an_error(self, serve):
        """An agent never ends in half an object."""
        cut = saying({"setup": "a", "punchline": "b"}, finish="length")
        model, _ = serve(lambda body: cut if "response_format" in body else Reply(text="draft"))
        with pytest.raises(StructuredOutputError, match="max_tokens"):
            model.invoke("go", tools=[self.TOOL], response_format=self.FORM)
