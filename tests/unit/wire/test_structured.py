"""Structured output: the object users get, and errors where it breaks."""

import asyncio
import json
from contextlib import suppress
from datetime import date

import pytest
from fakes.objects import LOOK, Joke, Person, saying
from fakes.reply import Reply, helpful
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from pydantic import BaseModel, ConfigDict, create_model, field_validator

from langchain_car_vllm.errors import CarVllmError, ConfigurationError, ForcedToolCallError
from langchain_car_vllm.wire.errors import InvalidRequestError, StructuredOutputError
from langchain_car_vllm.wire.request.schema import json_schema

CALLING = "function_calling"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


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


class Inverse(BaseModel):
    """A number, of which the inverse is wanted."""

    of: float

    @field_validator("of")
    @classmethod
    def _invert(cls, value: float) -> float:
        return 1 / value


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_validator_may_raise_anything_for_what_has_only_begun(serve, method):
    """The whole answer fits, so its parts end no stream, whatever they would mean by themselves."""
    call = {"name": "Inverse", "arguments": {"of": 0.5}}
    said = json.dumps(call if method == CALLING else call["arguments"])
    pieces = [said[: said.index(".")], said[said.index(".") :]]
    model, _ = serve(Reply(text=said, pieces=pieces))
    answers = list(model.with_structured_output(Inverse, method=method).stream("go"))
    assert answers[-1].of == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_json_that_a_stop_text_cut_off_is_told_as_that(serve, streamed):
    """What comes before the text is not whole; one behind the JSON does no harm."""
    said = json.dumps({"setup": "a", "punchline": "b"}, indent=1)
    model, _ = serve(Reply(text=f"{said}\n\nDone."), stop=["\n"])
    chain = model.with_structured_output(Joke)
    with pytest.raises(StructuredOutputError, match="`stop` text") as caught:
        list(chain.stream("go")) if streamed else chain.invoke("go")
    assert "stop=[]" in str(caught.value.hint)
    model, _ = serve(Reply(text=f"{said}\n\nDone."), stop=["\n\n"])
    chain = model.with_structured_output(Joke)
    assert (list(chain.stream("go"))[-1] if streamed else chain.invoke("go")).punchline == "b"
    model, _ = serve(Reply(text=said), stop=["\n"])
    assert model.with_structured_output(Joke, stop=[]).invoke("go").punchline == "b"


@pytest.mark.parametrize("given", [{"tools": [add]}, {"tool_choice": "auto"}])
def test_a_method_that_forces_a_tool_takes_no_others(serve, given):
    """Its own tool is the one that is forced; it was a `TypeError` of Python's."""
    model, _ = serve()
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        model.with_structured_output(Joke, method=CALLING, **given)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_method_gives_the_object(serve, method, streamed):
    """Constrained, called or in JSON mode, whole or streamed."""
    model, _ = serve()
    chain = model.with_structured_output(Joke, method=method)
    answer = list(chain.stream("go"))[-1] if streamed else chain.invoke("go")
    assert isinstance(answer, Joke)


class Visit(BaseModel):
    """A visit, whose day is not a text."""

    model_config = ConfigDict(strict=True)

    day: date
    guests: int

    @field_validator("guests")
    @classmethod
    def check_guests(cls, guests: int) -> int:
        if guests > 4:
            raise ValueError("too many")
        return guests


def visit(guests: int, method: str) -> Reply:
    arguments = {"day": "2026-01-31", "guests": guests}
    return saying({"name": "Visit", "arguments": arguments} if method == CALLING else arguments)


@pytest.mark.parametrize("method", ["json_schema", CALLING, "json_mode"])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_method_reads_json_and_says_in_the_same_way_what_does_not_fit(
    serve, method, streamed
):
    """Strict classes take JSON's texts for days, and validators of the user's own may refuse."""
    model, _ = serve(visit(4, method))
    chain = model.with_structured_output(Visit, method=method)
    answer = list(chain.stream("go"))[-1] if streamed else chain.invoke("go")
    assert answer == Visit(day=date(2026, 1, 31), guests=4)
    model, _ = serve(visit(5, method))
    chain = model.with_structured_output(Visit, method=method)
    with pytest.raises(StructuredOutputError, match="guests: Value error, too many"):
        list(chain.stream("go")) if streamed else chain.invoke("go")


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
def test_a_truncated_answer_names_max_tokens(serve, streamed):
    """The server closes the brackets of what was cut off; the finish reason tells."""
    model, _ = serve(saying({"setup": "Why", "punchline": "B"}, finish="length"))
    chain = model.with_structured_output(Joke)
    with pytest.raises(StructuredOutputError, match="max_tokens") as caught:
        list(chain.stream("go")) if streamed else chain.invoke("go")
    assert isinstance(caught.value, OutputParserException)


def test_include_raw_catches_what_does_not_fit(serve):
    """The raw message, no object, and the error."""
    model, _ = serve(saying({"setup": "Why"}, finish="length"))
    found = model.with_structured_output(Joke, include_raw=True).invoke("go")
    assert found["raw"].text == '{"setup": "Why"}'
    assert found["parsed"] is None
    assert isinstance(found["parsing_error"], StructuredOutputError)


@pytest.mark.parametrize("streamed", [False, True])
def test_include_raw_catches_a_call_that_did_not_come(serve, streamed):
    """As it catches an answer that does not fit: the model's own words are beside the error."""
    model, _ = serve(Reply(text="I would rather talk."))
    structured = model.with_structured_output(Joke, include_raw=True, method=CALLING)
    found = structured.invoke("go")
    if streamed:
        first, *rest = structured.stream("go")
        found = sum(rest, first)
    assert found["raw"].text == "I would rather talk."
    assert found["parsed"] is None
    assert isinstance(found["parsing_error"], ForcedToolCallError)


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


@pytest.mark.parametrize("method", ["json_schema", CALLING])
def test_an_answer_that_is_too_deep_to_be_checked_does_not_fit(serve, method):
    """It would pass unchecked: a model that repeats itself nests without an end."""
    inner = {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "integer"}]}
    node = {"type": "object", "properties": {"n": inner}, "required": ["n"]}
    schema = {"title": "node", "$ref": "#/$defs/n", "$defs": {"n": node}}
    text = '{"n": ' * 400 + '"not a number"' + "}" * 400
    text = f'{{"name": "node", "arguments": {text}}}' if method == CALLING else text
    model, _ = serve(Reply(text))
    with pytest.raises((StructuredOutputError, ForcedToolCallError), match="too deeply"):
        model.with_structured_output(schema, method=method).invoke("go")


@pytest.mark.parametrize("method", ["json_schema", CALLING])
def test_a_schema_that_nests_too_deeply_is_refused(serve, method):
    """In words, instead of a bare RecursionError."""
    schema: dict[str, object] = {}
    for _ in range(600):
        schema = {"type": "object", "properties": {"x": schema}}
    model, _ = serve()
    with pytest.raises(CarVllmError):
        model.with_structured_output({**schema, "title": "x"}, method=method).invoke("go")


@pytest.mark.parametrize("method", ["json_schema", "json_mode", CALLING])
def test_a_schema_is_what_it_was_when_it_was_given(serve, method):
    """A program may change its dictionary for the next one."""
    schema = {"title": "P", "type": "object", "properties": {"age": {"type": "integer"}}}
    model, _ = serve(helpful)
    chain = model.with_structured_output(schema, method=method)
    schema["properties"]["name"] = schema["properties"].pop("age")
    assert chain.invoke("go").keys() == {"age"}


@pytest.mark.parametrize("tools", [None, [LOOK]])
@pytest.mark.parametrize(
    "inner", [{}, {"json_schema": None}, {"json_schema": 5}, {"json_schema": {"schema": []}}]
)
def test_a_response_format_without_a_schema_is_refused(serve, inner, tools):
    """Whatever stands where the schema was to be."""
    model, _ = serve()
    with pytest.raises(InvalidRequestError, match="has no schema"):
        model.invoke("go", response_format={"type": "json_schema", **inner}, tools=tools)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_call_instead_of_the_object_is_no_broken_object(serve, streamed):
    """With `tools` beside the schema a step may call; the raw message has the call."""
    model, _ = serve()
    tools = [LOOK]
    structured = model.with_structured_output(Joke, tools=tools)
    assert (list(structured.stream("go")) if streamed else [structured.invoke("go")]) in (
        [],
        [None],
    )
    both = model.with_structured_output(Joke, tools=tools, include_raw=True).invoke("go")
    assert both["raw"].tool_calls[0]["name"] == "look"
    assert (both["parsed"], both["parsing_error"]) == (None, None)


WORDS = ("properties", "required", "$defs", "$ref", "anyOf", "items", "allOf", "enum", "pattern", 5)
ODD = st.sampled_from([5, None, "ab", True, [], {}, [5], {"a": 5}, {5: {}}, {"a": {"type": 5}}])


def test_what_is_no_schema_is_a_typed_error_or_forbids_nothing(serve):
    """Whoever writes a schema by hand forgets a brace, and finds out which."""
    model, _ = serve(Reply(text="{}"))

    @settings(max_examples=15)
    @given(words=st.dictionaries(st.sampled_from(WORDS), ODD, min_size=1, max_size=2))
    def ask_for(words):
        schema = {"type": "object", "title": "T", **words}
        for method in ("json_schema", CALLING):
            with suppress(CarVllmError):
                model.with_structured_output(schema, method=method).invoke("go")
        with suppress(CarVllmError):
            model.bind_tools([add], response_format=schema).invoke("go")

    ask_for()
