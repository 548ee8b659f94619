"""A forced tool choice ends in a valid call or in an error that says why."""

import json
import re
from typing import Any

import pytest
from fakes.calls import HISTORY, Multiply, add, called, ways
from fakes.reply import Reply, helpful
from langchain_core.exceptions import ModelAPIError
from langchain_core.tools import StructuredTool
from langchain_core.tools import tool as tool_of
from pydantic import BaseModel

from langchain_car_vllm.errors import ConfigurationError, ForcedToolCallError
from langchain_car_vllm.wire.errors import IncompleteAnswerError
from langchain_car_vllm.wire.request.schema import is_recursive
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import openai_tools


def test_a_choice_of_an_unbound_tool_is_refused(serve):
    """The server would answer it with 500."""
    model, _ = serve()
    with pytest.raises(ConfigurationError, match="`sub`"):
        model.bind_tools([add], tool_choice="sub")


@pytest.mark.parametrize(
    "choice",
    [
        "any",
        "required",
        True,
        "add",
        {"type": "any"},
        {"type": "tool", "name": "add"},
        {"type": "function", "function": {"name": "add"}},
    ],
)
def test_a_choice_is_understood_in_bind_and_in_a_call_too(serve, choice):
    """Not only `bind_tools` takes LangChain's, OpenAI's and Anthropic's forms."""
    model, _ = serve()
    for message in (
        model.bind(tools=[add], tool_choice=choice).invoke("go"),
        model.invoke("go", tools=[add], tool_choice=choice),
        model.bind_tools([add], tool_choice=choice).invoke("go"),
    ):
        assert called(message) == [("add", {"a": 3, "b": 3})]


@pytest.mark.parametrize("word", ["any", "auto", "none", "required"])
def test_a_tool_may_have_the_name_of_a_choice(serve, word):
    """A choice that names it means it: one named `none` gave no object, and no error either."""
    schema = {"title": word, "type": "object", "properties": {"a": {"type": "integer"}}}
    model, _ = serve()
    structured = model.with_structured_output(
        {**schema, "required": ["a"]}, method="function_calling"
    )
    assert structured.invoke("go") == {"a": 3}
    choice = {"type": "tool", "name": word}
    forced = model.bind_tools([add, {**schema, "required": ["a"]}], tool_choice=choice)
    assert called(forced.invoke(HISTORY)) == [(word, {"a": 3})]


def test_a_forced_call_without_a_tool_is_refused(serve):
    """It could only end in a plain answer."""
    model, dialect = serve()
    with pytest.raises(ConfigurationError, match="no tool is bound"):
        model.invoke("go", tool_choice="any")
    assert model.invoke("go", tool_choice="auto").text
    assert len(dialect.requests) == 1


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_a_forced_call_goes_out_as_an_unforced_one(serve, choice):
    """The native request is the same byte for byte, so the server's cache holds."""
    model, dialect = serve()
    tools = [add, Multiply]
    model.bind_tools(tools).invoke(HISTORY[:1])
    forced = model.bind_tools(tools, tool_choice=choice).invoke(HISTORY[:1])
    assert dialect.bodies[0] == dialect.bodies[1]
    assert called(forced) == [("add", {"a": 3, "b": 3})]
    assert forced.response_metadata["tool_choice_method"] == "native"


@pytest.mark.parametrize(
    "first",
    [
        Reply(text="I would rather talk.", thought="hmm"),
        Reply(calls=[("add", {"a": "one"})], thought="hmm"),
        Reply(calls=[("unknown", {})], thought="hmm"),
        Reply(thought="hmm"),
    ],
)
def test_where_no_valid_call_comes_the_grammar_follows(serve, first):
    """Refusals, wrong arguments and unknown tools are answered with one constrained request."""
    model, dialect = serve(lambda body: helpful(body) if body.get("response_format") else first)
    bound = model.bind_tools([add, Multiply], tool_choice="any")
    for way, message in ways(bound, HISTORY).items():
        assert called(message) == [("add", {"a": 3, "b": 3})], way
        assert message.content == ""
        assert message.response_metadata["tool_choice_method"] == "grammar"
        assert message.additional_kwargs["reasoning_content"] == "hmm"
        assert message.usage_metadata["input_tokens"] == 42
    constrained = dialect.requests[1]
    assert "tools" not in constrained
    assert constrained["messages"] == dialect.requests[0]["messages"]
    schema = constrained["response_format"]["json_schema"]["schema"]
    assert (schema["minItems"], schema["maxItems"]) == (1, 2)


def test_a_single_named_tool_without_history_goes_to_the_grammar_at_once(serve):
    """There is nothing in the cache to keep, and one request is enough."""
    model, dialect = serve()
    message = model.bind_tools([add], tool_choice="add").invoke("go")
    assert called(message) == [("add", {"a": 3, "b": 3})]
    assert len(dialect.requests) == 1
    schema = dialect.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["name"] == {"const": "add"}


def test_a_named_tool_with_history_is_asked_for_natively_first(serve):
    """The other tools stay in the prompt, and only the named one counts."""
    model, dialect = serve(
        lambda body: helpful(body) if body.get("response_format") else Reply(calls=[("add", {})])
    )
    message = model.bind_tools([add, Multiply], tool_choice="Multiply").invoke(HISTORY)
    assert (
        called(message) == [("Multiply", {"a": 3})] or message.tool_calls[0]["name"] == "Multiply"
    )
    assert len(dialect.requests[0]["tools"]) == 2
    assert len(dialect.requests) == 2


def test_the_method_of_a_forced_choice_can_be_chosen(serve):
    """`native` never constrains, `grammar` never asks first."""
    model, dialect = serve(Reply(text="no"))
    bound = model.bind_tools([add, Multiply], tool_choice="any", tool_choice_method="native")
    with pytest.raises(ForcedToolCallError, match="add, Multiply"):
        bound.invoke("go")
    assert len(dialect.requests) == 1
    model, dialect = serve()
    model.bind_tools([add, Multiply], tool_choice="any", tool_choice_method="grammar").invoke("go")
    assert "response_format" in dialect.requests[0]
    with pytest.raises(ConfigurationError, match="tool_choice_method"):
        model.bind_tools([add], tool_choice="any", tool_choice_method="hope").invoke("go")


def test_a_server_without_a_grammar_is_said_to_be_one(serve):
    """The server's own words and the version it takes."""
    detail = "response_format is unavailable: llguidance"
    model, _ = serve(
        lambda body: Reply(status=422, detail=detail) if "response_format" in body else Reply("no")
    )
    with pytest.raises(ForcedToolCallError, match="llguidance") as caught:
        model.bind_tools([add, Multiply], tool_choice="any").invoke("go")
    assert "0.5" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text", ['[{"name": "add", "argu', "[]", '[{"name": "add", "arguments": {}}]']
)
def test_a_constrained_answer_that_is_no_call_is_an_error(serve, text):
    """Cut off, empty or not fitting: never a message without a call."""
    model, _ = serve(lambda body: Reply(text=text, finish="length"))
    with pytest.raises(ForcedToolCallError):
        model.bind_tools([add], tool_choice="add").invoke("go")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_constrained_call_that_was_cut_off_is_no_call(serve, streamed):
    """The server closes its brackets, so half a city would pass for a whole one."""
    cut = Reply(text='{"name": "add", "arguments": {"a": 1, "b": 2}}', finish="length")
    model, _ = serve(cut)
    bound = model.bind_tools([add], tool_choice="add")
    seen = []
    with pytest.raises(ForcedToolCallError, match="max_tokens"):
        seen.extend(bound.stream("go")) if streamed else bound.invoke("go")
    assert seen == []


def test_a_native_call_that_was_cut_off_is_asked_for_again(serve):
    """Arguments without an end are read leniently elsewhere, and would pass for whole ones here."""
    event = {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [
                        {"index": 0, "id": "1", "function": {"name": "add", "arguments": '{"a": 1'}}
                    ]
                },
                "finish_reason": "length",
            }
        ]
    }
    cut = Reply(raw=b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n")

    def script(body):
        return helpful(body) if body.get("response_format") else cut

    optional = {**add.tool_call_schema.model_json_schema(), "required": [], "title": "add"}
    model, _ = serve(script)
    chunks = list(model.bind_tools([optional, Multiply], tool_choice="any").stream("go"))
    assert chunks[-1].response_metadata["tool_choice_method"] == "grammar"


@pytest.mark.parametrize("choice", ["add", "any"])
def test_at_most_one_call_where_one_is_wanted(serve, choice):
    """A model that writes two of its own accord is heard once."""
    model, _ = serve(Reply(calls=[("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})]))
    bound = model.bind_tools([add, Multiply], tool_choice=choice, parallel_tool_calls=False)
    for message in ways(bound, HISTORY).values():
        assert [call["args"] for call in message.tool_calls] == [{"a": 1, "b": 2}]


def test_forced_calls_that_come_in_parts_are_whole(serve):
    """Held back until they are valid, they are given out in one chunk, which nobody merges."""
    calls = [("add", {"a": 1, "b": 2}), ("Multiply", {"a": 3, "b": 4})]
    model, _ = serve(Reply(calls=calls))
    for message in ways(model.bind_tools([add, Multiply], tool_choice="any"), HISTORY).values():
        assert called(message) == calls
        assert not message.invalid_tool_calls


def test_a_busy_server_is_no_missing_grammar(serve):
    """It is told as what it is, and may be asked again."""
    model, _ = serve(Reply(status=503, detail="busy"), max_retries=0)
    with pytest.raises(ModelAPIError, match="busy") as caught:
        model.bind_tools([add], tool_choice="add").invoke("go")
    assert caught.value.is_retryable


@pytest.mark.parametrize("part", [{"type": "int"}, {"$ref": "#/$defs/gone"}])
def test_a_tool_whose_schema_cannot_be_checked_is_called(serve, part):
    """What nobody can check forbids nothing."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": part}}}
    model, _ = serve(Reply(calls=[("f", {"a": 1})]))
    tools = [{"type": "function", "function": function}, add]
    found = model.bind_tools(tools, tool_choice="any").invoke("go")
    assert found.tool_calls[0]["args"] == {"a": 1}


def test_a_crash_under_the_grammar_is_a_crash(serve):
    """It is told as one, so that the call is sent once more where the server is ours."""
    model, _ = serve(Reply(text="[{", endless=True))
    with pytest.raises(IncompleteAnswerError):
        list(model.bind_tools([add], tool_choice="add").stream("go"))


def test_nothing_of_a_refused_answer_is_streamed(serve):
    """Text waits for the verdict; reasoning goes on at once."""
    model, _ = serve(
        lambda body: (
            helpful(body)
            if body.get("response_format")
            else Reply(text="I will not.", thought="think hard")
        )
    )
    chunks = list(model.bind_tools([add, Multiply], tool_choice="any").stream("go"))
    assert "".join(chunk.text for chunk in chunks) == ""
    assert chunks[0].additional_kwargs["reasoning_content"] == "think "


class Node(BaseModel):
    """A tree."""

    value: int
    children: list["Node"] = []


def plant(tree: Node) -> str:
    """Plant a tree."""
    return str(tree)


def served_tool(schema: dict[str, Any]) -> StructuredTool:
    """Return a tool as MCP servers describe theirs."""
    return StructuredTool(
        name="plant", description="Plants.", args_schema=schema, func=lambda **given: str(given)
    )


def node(target: str) -> dict[str, Any]:
    """Return the schema of a tree whose children are what a reference leads to."""
    children = {"type": "array", "items": {"$ref": target}}
    properties = {"value": {"type": "integer"}, "children": children}
    return {"type": "object", "properties": properties, "required": ["value"]}


def holding(tree: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"tree": tree}, "required": ["tree"], **more}


RECURSIVE = {
    "class": Node,
    "function": plant,
    "tool": tool_of(plant),
    "schema of a server": served_tool(Node.model_json_schema()),
    "draft 7": served_tool(
        holding({"$ref": "#/definitions/N"}, definitions={"N": node("#/definitions/N")})
    ),
    "path": served_tool(holding(node("#/properties/tree"))),
    "root": served_tool(node("#")),
}


@pytest.mark.parametrize("kind", RECURSIVE.values(), ids=RECURSIVE)
def test_a_recursive_schema_of_a_tool_reaches_the_grammar_whole(serve, kind):
    """LangChain leaves nothing of a reference that leads back to itself. References point into the
    tool, not into the list of calls.
    """
    model, dialect = serve()
    model.bind_tools([kind, add], tool_choice="any", tool_choice_method="grammar").invoke("go")
    schema = dialect.requests[0]["response_format"]["json_schema"]["schema"]
    assert is_recursive(schema)
    targets = re.findall(r"#/\$defs/(\w+)", json.dumps(schema))
    assert set(targets) <= schema["$defs"].keys()
    model.bind_tools([kind]).invoke("go")
    sent = dialect.requests[1]["tools"][0]["function"]["parameters"]
    assert validation_error({"value": 1, "tree": {"value": 1}}, sent) is None
    bad = {"value": 1, "children": [{"value": "high"}]}
    assert validation_error({**bad, "tree": bad}, sent) is not None
    (strict,) = openai_tools([kind], strict=True)
    assert strict["function"]["strict"]
    assert strict["function"]["parameters"]["additionalProperties"] is False


def test_parallel_calls_that_cannot_be_forbidden_are_warned_about(serve):
    """The server ignores `parallel_tool_calls`; only a constrained call heeds it."""
    model, dialect = serve()
    with pytest.warns(UserWarning, match="parallel_tool_calls"):
        model.bind_tools([add], parallel_tool_calls=False).invoke("go")
    forced = model.bind_tools(
        [add, Multiply], tool_choice="any", parallel_tool_calls=False, tool_choice_method="grammar"
    )
    assert len(forced.invoke("go").tool_calls) == 1
    assert "minItems" not in dialect.requests[1]["response_format"]["json_schema"]["schema"]
