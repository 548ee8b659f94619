"""Types mean what they say: TypedDicts, dataclasses, decimals, patterns, generic classes."""

import json
import sys
import typing
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Annotated, Generic, Literal, NotRequired, Optional, Required, TypedDict, TypeVar

import pytest
from fakes.calls import add, called
from fakes.objects import Joke, Person, saying
from fakes.reply import Reply
from fakes.request_schema import TOOL_NAME
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import ReadOnly

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.schema import json_schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import openai_tools

T = TypeVar("T")


class Answer(TypedDict):
    """An answer.

    Args:
        text: What is said.
    """

    text: str
    faq: Optional[str]  # noqa: UP045 - as people write it
    link: str | None
    note: Annotated[Optional[str], None, "A note."]  # noqa: UP045
    must: Annotated[str, ..., "Needed."]
    more: NotRequired[int]
    fixed: ReadOnly[int]
    pair: tuple[bool, bool]
    parts: list["Answer"]
    kind: Literal["a", "b"]


class Loose(TypedDict, total=False):
    """A loose one."""

    a: Required[int]
    b: str


class Box(TypedDict, Generic[T]):
    """A box."""

    item: T


class Crate(BaseModel, Generic[T]):
    """A crate."""

    item: T


@dataclass
class Point:
    """A point."""

    x: int
    y: float | None = None
    tags: list[str] = field(default_factory=list)


def test_the_keys_of_a_typed_dict_mean_what_they_say():
    """Optional takes null, NotRequired may lack, a tuple has places, descriptions stay."""
    schema = json_schema(Answer)
    schema = schema["$defs"]["Answer"]
    fields = schema["properties"]
    for name in ("faq", "link", "note"):
        assert fields[name]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert fields["more"]["type"] == fields["fixed"]["type"] == "integer"
    assert [part["type"] for part in fields["pair"]["prefixItems"]] == ["boolean"] * 2
    assert fields["parts"]["items"] == {"$ref": "#/$defs/Answer"}
    said = {name: fields[name].get("description") for name in ("text", "note", "must")}
    assert said == {"text": "What is said.", "note": "A note.", "must": "Needed."}
    assert set(schema["required"]) == fields.keys() - {"more", "note"}
    assert set(json_schema(Loose)["required"]) == {"a"}


def test_a_generic_typed_dict_has_the_type_that_it_was_given():
    """Also another TypedDict."""
    assert json_schema(Box[int])["properties"]["item"]["type"] == "integer"
    assert "Loose" in json_schema(Box[Loose])["$defs"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_null_is_an_answer_where_the_type_says_so(serve, method):
    """The grammar forces nobody to invent a text, and the check takes the null."""

    class Faq(TypedDict):
        """A question."""

        faq: Optional[str]  # noqa: UP045

    reply = saying({"faq": None})
    if method == "function_calling":
        reply = Reply(text=json.dumps({"name": "Faq", "arguments": {"faq": None}}))
    model, _ = serve(reply)
    assert model.with_structured_output(Faq, method=method).invoke("go") == {"faq": None}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_dataclass_gives_an_instance(serve, method, streamed):
    """As a pydantic class does."""
    arguments = {"x": 1, "y": 2.5, "tags": ["a"]}
    reply = saying(arguments)
    if method == "function_calling":
        reply = saying({"name": "Point", "arguments": arguments})
    model, _ = serve(reply)
    chain = model.with_structured_output(Point, method=method)
    found = list(chain.stream("go"))[-1] if streamed else chain.invoke("go")
    assert found == Point(1, 2.5, ["a"])


def test_a_dataclass_that_does_not_fit_is_an_error(serve):
    """With its name and the place."""
    model, _ = serve(saying({"x": "one"}))
    with pytest.raises(StructuredOutputError, match="`Point`: x"):
        model.with_structured_output(Point).invoke("go")


@pytest.mark.parametrize("kind", [Answer, Loose, Box[int], Point])
def test_typed_dicts_and_dataclasses_are_tools(kind):
    """With the same meaning as in structured output."""
    (found,) = openai_tools([kind])
    function = found["function"]
    assert function["name"] in ("Answer", "Loose", "Box[int]", "Point")
    assert function["description"].startswith(("A", "An"))
    assert function["parameters"]["properties"]
    if kind is Answer:
        fields = function["parameters"]["properties"]
        assert fields["faq"]["anyOf"] == [{"type": "string"}, {"type": "null"}]


def test_items_in_a_list_become_places():
    """The server's own check refuses the old form, whoever wrote it."""
    old = {"type": "array", "items": [{"type": "boolean"}], "additionalItems": False}
    found = grammar_schema({"type": "object", "properties": {"a": old}})
    assert found["properties"]["a"] == {
        "type": "array",
        "prefixItems": [{"type": "boolean"}],
        "items": False,
    }


BIG = [
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"type": "number", "minimum": -1e308, "maximum": 1e308},
    {"type": "number", "exclusiveMinimum": 1e-300},
    {"type": "string", "maxLength": 2**40},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 2**64},
]


@pytest.mark.parametrize("part", BIG, ids=str)
def test_bounds_that_no_range_can_hold_are_left_out(part):
    """What is small enough stays; the answer is checked against the original."""
    found = grammar_schema({"type": "object", "properties": {"a": part}})["properties"]["a"]
    assert found.keys() == {"type", "items"} & part.keys()
    small = {"type": "integer", "minimum": -5, "maximum": 2**40}
    assert grammar_schema(small) | small == grammar_schema(small)
    assert grammar_schema({"type": "number", "minimum": 0})["minimum"] == 0


def test_a_pattern_that_python_cannot_read_is_left_to_pydantic(serve):
    """Rust can, and so can pydantic; the server's own check cannot."""

    class Code(BaseModel):
        code: str = Field(pattern=r"^\p{L}{2,4}$")

    model, dialect = serve(saying({"code": "abc"}))
    assert model.with_structured_output(Code).invoke("go") == Code(code="abc")
    assert "pattern" not in json.dumps(dialect.requests)
    model, _ = serve(saying({"code": "12345"}))
    with pytest.raises(StructuredOutputError, match="code"):
        model.with_structured_output(Code).invoke("go")
    schema = Code.model_json_schema()
    assert validation_error({"code": "1"}, schema) is None
    assert validation_error({"code": 1}, schema)


def test_keys_whose_pattern_cannot_be_read_are_let_through():
    """Closing the object would forbid what the original allows."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "patternProperties": {r"^\p{L}$": {"type": "integer"}},
        "additionalProperties": False,
    }
    found = grammar_schema(schema)
    assert "patternProperties" not in found
    assert found["additionalProperties"] is True


def test_a_decimal_in_a_tool_is_a_number():
    """In a pydantic class, a function and an optional; a union of the user's own stays."""

    class Pay(BaseModel):
        """Pay."""

        amount: Decimal = Field(ge=0)
        tip: Decimal | None = None
        other: float | str = 1

    def pay(amount: Decimal, tips: list[Decimal]) -> str:
        """Pay."""
        return str(amount)

    one, two, three = (
        found["function"]["parameters"]["properties"]
        for found in openai_tools([Pay, tool(pay), pay])
    )
    assert two == three
    assert (one["amount"]["type"], one["amount"]["minimum"]) == ("number", 0)
    assert {"type": "string"} not in one["tip"]["anyOf"]
    assert {"type": "string"} in one["other"]["anyOf"]
    assert two["amount"]["type"] == two["tips"]["items"]["type"] == "number"


class Titled(BaseModel):
    """A moon."""

    model_config = ConfigDict(title="My Moon")
    item: int


@pytest.mark.parametrize("kind", [Crate[int], Titled])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_class_with_any_name_gives_its_instance(serve, kind, method):
    """The server takes only plain names for tools."""
    model, dialect = serve()
    assert isinstance(model.with_structured_output(kind, method=method).invoke("go"), kind)
    sent = [tool["function"]["name"] for tool in dialect.requests[0].get("tools", ())]
    assert all(TOOL_NAME.fullmatch(name) for name in sent)


def test_an_agents_tool_strategy_takes_a_generic_class(serve):
    """LangChain names its tool after the class."""
    model, _ = serve()
    agent = create_agent(model, [], response_format=ToolStrategy(Crate[int]))
    assert agent.invoke({"messages": "go"})["structured_response"] == Crate[int](item=3)


class Price(BaseModel):
    """A price."""

    euros: int


@pytest.mark.parametrize("give", [ToolStrategy, RootModel.__class_getitem__])
def test_an_agent_ends_in_one_of_two_classes(serve, give):
    """LangChain's own strategy takes no union; this is what the documentation says instead."""
    model, _ = serve()
    agent = create_agent(model, [], response_format=give(Crate[int] | Price))
    found = agent.invoke({"messages": "go"})["structured_response"]
    assert getattr(found, "root", found) == Crate[int](item=3)


BARE_TYPES = [
    *(Crate[int] | Price, Optional[Price], list[Price], list, int, typing.Any),  # noqa: UP045
    *(typing.List[Price], dict[str, Price], tuple[Price, ...], set[int], deque[Price]),  # noqa: UP006
    *(Sequence[Price], OrderedDict[str, Price], Literal["a", "b"], Annotated[Price, "x"]),
]


@pytest.mark.parametrize("kind", BARE_TYPES, ids=str)
def test_a_type_that_is_no_class_is_answered_with_how_to_make_one(serve, kind):
    """Not taken for a function that makes what is asked for, and what the hint says is a schema."""
    model, _ = serve()
    with pytest.raises(ConfigurationError, match="RootModel"):
        model.with_structured_output(kind)
    with pytest.raises(ConfigurationError):
        model.bind_tools([kind])
    model.with_structured_output(RootModel[kind])


@pytest.mark.parametrize("kind", BARE_TYPES[:6], ids=str)
def test_a_class_that_is_made_of_a_bare_type_is_answered_with(serve, kind):
    """As the hint says."""
    model, _ = serve()
    made = RootModel[kind]
    assert isinstance(model.with_structured_output(made).invoke("go"), made)


def test_a_root_that_is_a_reference_is_what_it_refers_to(serve):
    """In a tool's schema; definitions within definitions that lead nowhere are a typed error."""
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema = {"title": "f", "description": "F.", "$ref": "#/$defs/X", "$defs": {"X": inner}}
    (found,) = openai_tools([schema])
    assert found["function"]["name"] == "f"
    assert found["function"]["parameters"]["properties"] == inner["properties"]
    nested = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/X"}},
        "$defs": {
            "X": {"$defs": {"Y": {"type": "string"}}, "properties": {"y": {"$ref": "#/$defs/Y"}}}
        },
    }
    bad = StructuredTool(name="f", description="d", args_schema=nested, func=print)
    model, _ = serve()
    with pytest.raises(ConfigurationError, match="Y"):
        model.bind_tools([bad])
    with pytest.raises(ConfigurationError):
        model.bind_tools([{**schema, "$ref": "#/$defs/Z"}])


@pytest.mark.parametrize("kind", [ChatVllmMlx, VllmMlxEmbeddings])
def test_the_annotations_of_every_public_method_can_be_resolved(kind):
    """`with_fallbacks` and others ask for them at run time."""
    for name in dir(kind):
        method = getattr(kind, name, None)
        ours = str(getattr(method, "__module__", "")).startswith("langchain_car_vllm")
        if not name.startswith("_") and callable(method) and ours:
            typing.get_type_hints(method)


def test_a_model_with_fallbacks_takes_tools_and_schemas(serve):
    """Each of them gets what is bound."""
    broken, _ = serve(Reply(status=500, detail="broken"), max_retries=0)
    model, _ = serve()
    both = broken.with_fallbacks([model])
    assert called(both.bind_tools([add]).invoke("go")) == [("add", {"a": 3, "b": 3})]
    assert isinstance(both.with_structured_output(Joke).invoke("go"), Joke)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "json_schema") for kind in (Joke, Person, Point, Answer, Crate[int])),
        *((kind, "function_calling") for kind in (Joke, Point, Crate[int])),
    ],
)
def test_the_output_of_a_chain_is_described(serve, kind, method):
    """LangServe and Studio show the fields, with the raw message beside them, too."""
    model, _ = serve()
    chain = model.with_structured_output(kind, method=method)
    raw = model.with_structured_output(kind, method=method, include_raw=True).get_output_schema()
    names = kind.model_fields if hasattr(kind, "model_fields") else kind.__annotations__
    for shown in (chain.get_output_schema(), raw):
        text = json.dumps(shown.model_json_schema())
        assert all(f'"{name}"' in text for name in names)
    assert [*raw.model_fields] == ["raw", "parsed", "parsing_error"]
    assert chain.last.OutputType is kind


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="pydantic's first version ends there")
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_class_of_pydantics_first_version_may_be_looked_at(serve, method):
    """Nobody can describe it any more; drawing a graph of it is no error."""
    from pydantic import v1

    class Former(v1.BaseModel):
        """A number."""

        a: int

    model, _ = serve()
    chain = model.with_structured_output(Former, method=method)
    assert chain.get_output_jsonschema()
    assert chain.get_graph().draw_mermaid()


class Colour(Enum):
    RED = "red"


def test_an_enum_by_itself_is_refused(serve):
    """It would be taken for the function that makes enums."""
    model, dialect = serve(Reply(text='{"value": "red"}'))
    for bind in (model.with_structured_output, lambda enum: model.bind_tools([enum])):
        with pytest.raises(ConfigurationError, match=r"^`\w+` is an enum"):
            bind(Colour)
    assert dialect.requests == []
