"""Servers that are not known to be vllm-mlx: asked in their own way first, and told apart."""

import json
import re
from typing import Generic, TypeVar

import pytest
from fakes.calls import Multiply, add, called, ways
from fakes.objects import Joke, saying
from fakes.reply import Reply, helpful
from pydantic import BaseModel

from langchain_car_vllm.errors import ForcedToolCallError
from langchain_car_vllm.wire.errors import InvalidRequestError, StructuredOutputError

T = TypeVar("T")
FOREIGN = {"engine": "another"}
FITTING = {"name": "add", "arguments": {"a": 1, "b": 2}}
CALL = Reply(calls=[("add", {"a": 1, "b": 2})])


def script(native, constrained):
    """Return a script that answers the native request one way and the constrained one another."""
    return lambda body: constrained if "response_format" in body else native


@pytest.mark.parametrize("tools", [[add], [add, Multiply]])
@pytest.mark.parametrize("choice", ["any", "add"])
def test_a_forced_call_is_asked_for_natively_first(serve, tools, choice):
    """With the tools and the choice, which such a server may enforce."""
    model, dialect = serve(script(CALL, Reply(text="no")), dialect=FOREIGN)
    bound = model.bind_tools(tools, tool_choice=choice)
    for way, message in ways(bound, "go").items():
        assert called(message) == [("add", {"a": 1, "b": 2})], way
        assert message.response_metadata["tool_choice_method"] == "native"
    named = {"type": "function", "function": {"name": "add"}}
    assert dialect.requests[0]["tool_choice"] == ("required" if choice == "any" else named)
    assert len(dialect.requests[0]["tools"]) == len(tools)


@pytest.mark.parametrize(
    "native",
    [
        Reply(text="I would rather talk."),
        Reply(status=400, detail="tools are not supported"),
        Reply(status=422, detail="tool_choice: unknown"),
        Reply(status=500, detail="no template for tools"),
    ],
    ids=["talks", "400", "422", "500"],
)
def test_where_that_fails_the_grammar_follows(serve, native):
    """A server without tools may have a grammar."""
    model, dialect = serve(script(native, saying(FITTING)), dialect=FOREIGN, max_retries=0)
    for message in ways(model.bind_tools([add], tool_choice="add"), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2})]
        assert message.response_metadata["tool_choice_method"] == "grammar"
    assert "tool_choice" not in dialect.requests[1]


class Crate(BaseModel, Generic[T]):
    """Something packed."""

    content: T


@pytest.mark.parametrize("schema", [Crate[int], {**Joke.model_json_schema(), "title": "Ein Witz"}])
def test_the_name_of_a_schema_is_one_that_other_servers_take(serve, schema):
    """OpenAI refuses what no tool could be called, such as a space or a bracket."""
    model, dialect = serve(helpful, dialect=FOREIGN)
    model.with_structured_output(schema).invoke("go")
    model.bind_tools([add, schema], tool_choice="any", tool_choice_method="grammar").invoke("go")
    for body in dialect.requests:
        name = body["response_format"]["json_schema"]["name"]
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)


def test_where_both_fail_both_causes_are_told(serve):
    """Neither alone would help."""
    refused = Reply(status=400, detail="tools are not supported")
    no_grammar = Reply(status=400, detail="response_format is unknown")
    model, _ = serve(script(refused, no_grammar), dialect=FOREIGN)
    with pytest.raises(ForcedToolCallError, match="response_format is unknown") as caught:
        model.bind_tools([add], tool_choice="add").invoke("go")
    assert "tools are not supported" in str(caught.value)
    assert "0.5" not in (caught.value.hint or "")


def test_text_instead_of_json_is_a_server_without_a_grammar(serve):
    """More tokens would not help."""
    model, _ = serve(script(Reply(text="no"), Reply(text="Sure, adding.")), dialect=FOREIGN)
    with pytest.raises(ForcedToolCallError, match="does not constrain") as caught:
        model.bind_tools([add], tool_choice="add").invoke("go")
    assert "max_tokens" not in str(caught.value)


def test_a_key_error_is_not_answered_with_another_request(serve):
    """What is wrong with the key stays wrong."""
    model, dialect = serve(Reply(status=401, detail="who?"), dialect=FOREIGN)
    with pytest.raises(Exception, match="who"):
        model.bind_tools([add], tool_choice="add").invoke("go")
    assert len(dialect.requests) == 1


@pytest.mark.parametrize("engine", ["another", "simple"])
def test_a_grammar_that_got_lost_is_asked_for_once_more_with_a_bias(serve, engine):
    """A gateway hides the batched engine, which needs a processor for each request."""
    lost = {"error": "invalid_response_format_output", "message": "Failed to parse JSON"}

    def answer(body):
        if "response_format" in body and "logit_bias" not in body:
            return Reply(status=422, detail=lost)
        return helpful(body) if "response_format" in body else Reply(text="no")

    model, dialect = serve(answer, dialect={"engine": engine})
    assert isinstance(model.with_structured_output(Joke).invoke("go"), Joke)
    assert dialect.requests[1]["logit_bias"] == {"0": 0.0}
    bound = model.bind_tools([add, Multiply], tool_choice="any")
    assert called(bound.invoke("go")) == [("add", {"a": 3, "b": 3})]
    model, dialect = serve(Reply(status=422, detail=lost), dialect={"engine": engine})
    with pytest.raises(StructuredOutputError, match="Failed to parse"):
        model.with_structured_output(Joke).invoke("go")
    assert len(dialect.requests) == 2


def test_fields_that_a_strict_server_refuses_are_left_out(serve):
    """They are ours, nobody asked for them."""

    def strict(body):
        strange = {"enable_thinking", "chat_template_kwargs"} & body.keys()
        if strange:
            return Reply(status=400, detail=f"Unrecognized request arguments: {sorted(strange)}")
        return helpful(body)

    model, dialect = serve(strict, dialect=FOREIGN)
    assert isinstance(model.with_structured_output(Joke).invoke("go"), Joke)
    assert len(dialect.requests) == 2


def test_fields_that_are_refused_one_by_one_are_left_out(serve, recwarn):
    """As OpenAI tells them, also where a call got lost that is then asked for whole."""
    strange = ("enable_thinking", "chat_template_kwargs", "stream_options")

    def strict(body):
        if refused := [name for name in strange if name in body]:
            return Reply(status=400, detail=f"Unknown parameter: '{refused[0]}'.")
        return CALL if "stream" not in body else Reply(usage=(5, 9))

    model, dialect = serve(strict, dialect=FOREIGN, reasoning=False)
    for message in ways(model.bind_tools([add]), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2})]
    streamed = [body for body in dialect.requests if body.get("stream")]
    refusals = [name for name in strange if name in streamed[0]]
    assert len(refusals) > 1
    assert refusals[0] not in dialect.requests[-1]
    assert not recwarn.list


@pytest.mark.parametrize("forced", [True, False])
def test_a_schema_that_cannot_be_built_is_the_requests_own_fault(serve, forced):
    """With the grammar's sentence, and nobody repeats it."""
    detail = "the schema cannot be enforced: Failed to generate regex for integer range"
    model, dialect = serve(script(Reply(text="no"), Reply(status=400, detail=detail)))
    bound = model.bind_tools([add], tool_choice="add")
    with pytest.raises(InvalidRequestError, match="integer range") as caught:
        bound.invoke("go") if forced else model.with_structured_output(Joke).invoke("go")
    assert not caught.value.is_retryable
    assert "0.5" not in str(caught.value)
    assert len(dialect.requests) == 1


def test_a_stream_goes_on_with_the_second_attempt(serve):
    """Nothing of the first was seen."""
    model, _ = serve(
        script(Reply(frame=(400, "tools are not supported")), saying(FITTING)), dialect=FOREIGN
    )
    chunks = list(model.bind_tools([add], tool_choice="add").stream("go"))
    assert json.loads(chunks[0].tool_call_chunks[0]["args"]) == FITTING["arguments"]
