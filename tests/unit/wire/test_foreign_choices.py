"""Choices and tools as they are written for models of other providers."""

import pytest
from fakes.calls import Multiply, add, called
from fakes.reply import Reply

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.request.tools import normalize_choice, openai_tools

NAMED = {"type": "function", "function": {"name": "add"}}
TAKING = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ({"any": {}}, "required"),
        ({"auto": {}}, "auto"),
        ({"tool": {"name": "add"}}, NAMED),
        ("ANY", "required"),
        ("REQUIRED", "required"),
        ("NONE", "none"),
    ],
)
def test_a_choice_of_another_provider_is_understood(choice, meant):
    """As Bedrock, Gemini and Cohere write it."""
    assert normalize_choice(choice, ["add"]) == meant


def test_a_tool_may_have_the_name_of_a_choice_in_capitals():
    """It is the nearer one."""
    assert normalize_choice("ANY", ["ANY"]) == {"type": "function", "function": {"name": "ANY"}}


@pytest.mark.parametrize("choice", [{"mode": "ANY"}, {}, ["add"], 1, 0, add, {"name": 5}])
def test_what_is_no_choice_is_said_to_be_none(choice):
    """It was said to name `None`."""
    with pytest.raises(ConfigurationError, match="`tool_choice` cannot be"):
        normalize_choice(choice, ["add"])


@pytest.mark.parametrize("bound", [True, False])
def test_anthropics_wish_for_one_call_holds(serve, bound, recwarn):
    """It stands within the choice, and was left out."""
    choice = {"type": "any", "disable_parallel_tool_use": True}
    model, _ = serve(Reply(calls=[("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})]))
    if bound:
        answer = model.bind_tools([add, Multiply], tool_choice=choice).invoke("go")
    else:
        answer = model.invoke("go", tools=[add, Multiply], tool_choice=choice)
    assert called(answer) == [("add", {"a": 1, "b": 2})]
    assert not recwarn.list


@pytest.mark.parametrize("choice", [None, "auto"])
def test_one_call_at_most_cannot_be_had_where_none_is_forced(serve, choice):
    """The server takes no such wish, whatever word leaves the choice to the model."""
    model, _ = serve(Reply(text="ok"))
    with pytest.warns(UserWarning, match="parallel_tool_calls"):
        model.bind_tools([add], tool_choice=choice, parallel_tool_calls=False).invoke("go")


@pytest.mark.parametrize("word", ["parameter_definitions", "parametersJsonSchema", "args_schema"])
@pytest.mark.parametrize("more", [{}, {"type": "function"}])
def test_a_tool_is_not_bound_without_what_it_takes(word, more):
    """Cohere's and Gemini's words for it were left out, and the tool was called with nothing."""
    with pytest.raises(ConfigurationError, match=f"`parameters`, not `{word}`"):
        openai_tools([{**more, "name": "look", "description": "Look.", word: TAKING}])


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "look", "description": "", "annotations": {"readOnlyHint": True}},
        {"type": "function", "function": {"name": "look", "parameters": None}},
    ],
)
def test_a_tool_may_take_nothing(tool):
    """What is no description of its arguments is none; `null` broke the server's parsers."""
    (found,) = openai_tools([tool])
    assert not found["function"].get("parameters", {})
