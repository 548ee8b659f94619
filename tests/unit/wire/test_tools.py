"""Tools: bound in any form, called, streamed, and sent back in the history."""

import copy
import json
import pickle
from functools import partial, reduce

import pytest
from fakes.calls import Divide, Multiply, add, called, shout, sum_of, ways
from fakes.reply import Reply, helpful
from fakes.request_schema import TOOL_NAME
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from pydantic import RootModel

from langchain_car_vllm import CutOffCallWarning
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.wire.request.tools import openai_tools, server_name

TAKING = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_every_form_of_tool_is_bound(serve):
    """Tools, pydantic classes, TypedDicts, functions, runnables and schemas."""
    model, dialect = serve()
    chain = RunnableLambda(lambda given: given["q"]).as_tool(
        name="ask", description="Ask.", arg_types={"q": str}
    )
    schema = {"title": "raw", "description": "Raw.", "type": "object", "properties": {}}
    model.bind_tools([add, Multiply, Divide, shout, chain, schema]).invoke("hi")
    names = [entry["function"]["name"] for entry in dialect.requests[0]["tools"]]
    assert names == ["add", "Multiply", "Divide", "shout", "ask", "raw"]
    assert "tool_choice" not in dialect.requests[0]


def test_bound_tools_are_prepared_once_and_sent_as_they_are_then(serve):
    """Copies, whatever made them, are sent alike, and what is changed in them is sent changed."""
    model, dialect = serve()
    bound = model.bind_tools([add, Multiply])
    [first, second] = openai_tools(bound.kwargs["tools"])
    assert first is bound.kwargs["tools"][0]
    for copied in (
        copy.deepcopy,
        lambda t: pickle.loads(pickle.dumps(t)),
        lambda t: json.loads(json.dumps(t)),
    ):
        model.bind(tools=copied([first, second])).invoke("hi")
    bound.invoke("hi")
    assert [request["tools"] for request in dialect.requests] == [[first, second]] * 4
    first["function"]["description"] = "Adds."
    bound.invoke("hi")
    assert dialect.requests[-1]["tools"][0]["function"]["description"] == "Adds."


FORMS = [
    {"type": "function", "function": {"name": "f", "description": "Old.", "parameters": TAKING}},
    {"type": "function", "function": {"name": "f", "description": "Old.", "parameters": None}},
    {"type": "function", "name": "f", "description": "Old.", "parameters": TAKING},
    {"name": "f", "description": "Old.", "input_schema": TAKING},
    {"name": "f", "description": "Old.", "inputSchema": TAKING},
    {"title": "f", "description": "Old.", **TAKING},
]


@pytest.mark.parametrize("form", FORMS, ids=json.dumps)
def test_a_tool_and_its_dictionary_are_told_apart_once_it_is_bound(serve, form):
    """A program may use one dictionary for many tools; none is changed under its hands."""
    model, dialect = serve(Reply("hello"))
    tool = copy.deepcopy(form)
    bound = model.bind_tools([tool])
    bound.invoke("hi")
    model.invoke("hi", tools=[tool])
    assert tool == form
    level = [tool]
    while level:
        inner = level.pop()
        level += [part for part in inner.values() if isinstance(part, dict)]
        inner.clear()
    bound.invoke("hi")
    first, given_in_the_call, last = (request["tools"] for request in dialect.requests)
    assert first == given_in_the_call == last


@pytest.mark.parametrize(
    "name", ["has space", "ümlaut", "x" * 65, "calendar.list", "计算器", "a/b"]
)
@pytest.mark.parametrize("choice", [None, "any", "named"])
def test_a_tool_of_any_name_goes_out_under_an_alias_and_comes_back(serve, name, choice):
    """In the tools, the choice, the answer and the history; the same name is always the same."""
    model, dialect = serve()
    schema = {"title": name, "description": "d", "type": "object", "properties": {}}
    bound = model.bind_tools([schema, add], tool_choice=name if choice == "named" else choice)
    for message in ways(bound, "go").values():
        assert called(message) == [(name, {})]
    message = model.bind_tools([schema, add]).invoke("go")
    bound.invoke([HumanMessage("go"), message, ToolMessage("ok", tool_call_id="call_0")])
    native = [body for body in dialect.requests if body.get("tools")]
    (alias,) = {body["tools"][0]["function"]["name"] for body in native}
    assert TOOL_NAME.fullmatch(alias)
    with_history = [body for body in dialect.requests if len(body["messages"]) > 1]
    (call,) = with_history[0]["messages"][1]["tool_calls"]
    assert call["function"]["name"] == alias


@given(st.lists(st.text(min_size=1, max_size=70), min_size=1, max_size=4, unique=True))
def test_every_name_has_a_legal_alias_of_its_own(names):
    """Whatever else is bound, so that the history's bytes stay; legal names are their own."""
    aliases = [server_name(name) for name in names]
    assert all(TOOL_NAME.fullmatch(alias) for alias in aliases)
    assert len(set(aliases)) == len(names)
    assert [server_name(alias) for alias in aliases] == aliases


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search_preview"},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "custom", "name": "code", "description": "Runs code."},
        {"type": "mcp", "server_label": "x", "server_url": "https://x.example"},
        {"google_search": {}},
        {"cachePoint": {"type": "default"}},
    ],
)
def test_tools_of_other_providers_are_said_not_to_exist_here(serve, tool):
    """What runs on somebody's servers is no function that the model could call, named or not."""
    model, _ = serve()
    kind = tool.get("type") or next(iter(tool))
    for call in (model.bind_tools, lambda tools: model.invoke("hi", tools=tools)):
        with pytest.raises(ConfigurationError, match=f"`{kind}` is a tool of another provider"):
            call([tool])


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "f", "input_schema": {"type": "object", "properties": {}}},
        {"type": "custom", "name": "f", "input_schema": {"type": "object", "properties": {}}},
        {"type": "function", "function": {"name": "f"}},
        {"type": "function", "name": "f"},
        {"name": "f", "description": "Needs nothing."},
        {"title": "f", "type": "object", "properties": {}},
    ],
)
@pytest.mark.parametrize("strict", [None, True, False])
def test_whatever_says_what_it_takes_is_a_tool(serve, tool, strict):
    """In the forms of OpenAI and Anthropic, and as a JSON schema."""
    model, _ = serve()
    bound = model.bind_tools([tool], strict=strict)
    assert [t["function"]["name"] for t in bound.kwargs["tools"]] == ["f"]


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "f", "description": "Do.", "inputSchema": TAKING},
        {"name": "f", "description": "Do.", "input_schema": TAKING},
        {"type": "function", "name": "f", "description": "Do.", "parameters": TAKING},
        {
            "type": "function",
            "name": "f",
            "description": "Do.",
            "parameters": TAKING,
            "strict": None,
        },
    ],
)
def test_what_a_tool_takes_is_sent_in_whatever_form_it_was_said(serve, tool):
    """Without it the model would have to guess: MCP's form, Anthropic's, OpenAI's newer one."""
    model, dialect = serve()
    model.bind_tools([tool]).invoke("go")
    (sent,) = dialect.requests[0]["tools"]
    assert sent["function"]["name"] == "f"
    assert sent["function"]["parameters"]["properties"] == TAKING["properties"]


UNION = {"anyOf": [TAKING, {"type": "object", "properties": {"b": {"type": "integer"}}}]}


@pytest.mark.parametrize(
    "words",
    [
        UNION,
        {"oneOf": UNION["anyOf"]},
        {"allOf": [{"$ref": "#/$defs/T"}], "$defs": {"T": TAKING}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"$ref": "#/$defs/U", "$defs": {"T": TAKING, "U": {"anyOf": [{"$ref": "#/$defs/T"}]}}},
    ],
)
@pytest.mark.parametrize("strict", [None, True])
def test_what_a_schema_without_properties_takes_is_sent(serve, words, strict):
    """A union, or a dictionary of anything: it went out as a tool without arguments."""
    model, dialect = serve()
    model.bind_tools([{"title": "f", "description": "Do.", **words}], strict=strict).invoke("go")
    sent = dialect.requests[0]["tools"][0]["function"]
    assert (sent["name"], sent["description"]) == ("f", "Do.")
    assert {"anyOf", "oneOf", "allOf", "additionalProperties"} & sent["parameters"].keys()


NO_OBJECTS = ("{}", True, [], {"type": "array"}, {"type": ["string"]}, {"type": 5})
DEEP = reduce(lambda inner, _: {"type": "object", "properties": {"x": inner}}, range(2000), {})


@pytest.mark.parametrize(
    "tool",
    [
        partial(print, "x"),
        {"type": "function", "function": "f"},
        {"type": "function", "function": {"name": "f", "parameters": {"enum": {1, 2}}}},
        {"type": "function", "function": {"name": "f", "parameters": {(1, 2): 3}}},
        {"type": "function", "function": {"name": "f", "parameters": DEEP}},
        *[{"type": "function", "function": {"name": "f", "parameters": odd}} for odd in NO_OBJECTS],
        RootModel[list[int]],
        {"title": "f", "type": "array", "items": {"type": "integer"}},
        {"title": "f", "type": "string"},
    ],
)
def test_a_tool_that_cannot_be_sent_is_a_typed_error(serve, tool):
    """When it is bound or when it is sent, also where the prompt is measured first."""
    model, _ = serve()
    with pytest.raises(CarVllmError):
        model.bind_tools([tool]).invoke("go")
    with pytest.raises(CarVllmError):
        model.invoke("go", tools=[tool])


@pytest.mark.parametrize("tool", [5, None, "weather", {}, {"a": 1, "b": 2}, [], b"x"])
def test_what_is_no_tool_is_told_in_one_line(serve, tool):
    """LangChain's own message has eight."""
    model, _ = serve()
    with pytest.raises(ConfigurationError) as caught:
        model.bind_tools([tool])
    assert "\n" not in caught.value.message
    assert caught.value.hint
    with pytest.raises(ConfigurationError, match="without a name"):
        model.bind_tools([{"type": "function", "function": {"parameters": {}}}])


def test_what_is_no_tool_is_refused(serve):
    """The message says what may be given."""
    model, _ = serve()
    for tools in (shout, None, "shout", {"a": shout}, Multiply):
        with pytest.raises(ConfigurationError, match=r"a list of tools") as caught:
            model.bind_tools(tools)
        assert "[tool]" in caught.value.hint
    with pytest.raises(ConfigurationError, match="cannot be described") as caught:
        model.bind_tools([5])
    assert "functions" in (caught.value.hint or "")


def test_parallel_calls_are_the_same_in_every_way(serve):
    """Two calls, whole or in parts."""
    reply = Reply(text="I add.", calls=[("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})])
    model, _ = serve(reply)
    for message in ways(model.bind_tools([add]), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})]
        assert message.content == "I add."
        assert message.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"a": 1, "b": 2}}',
        'Sure.\n\n```json\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n```',
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}',
    ],
)
def test_a_call_written_as_text_is_the_same_in_every_way(serve, text):
    """What a call returns without streaming it returns with streaming."""
    model, _ = serve(Reply(text=text))
    for message in ways(model.bind_tools([add]), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2})]
        assert message.content in ("", "Sure.")
        assert message.response_metadata["finish_reason"] == "tool_calls"


def _streams_lose_calls(body):
    return Reply(text="lost") if body.get("stream") else helpful(body)


@pytest.mark.parametrize("engine", ["simple", "batched"])
@pytest.mark.parametrize("stop", [None, ["zzz"]])
def test_calls_that_a_parser_loses_in_a_stream_are_asked_for_whole(serve, engine, stop):
    """A family whose parser loses streamed calls is asked whole, whatever else is wanted."""
    model, dialect = serve(
        _streams_lose_calls,
        dialect={"served_model": "gpt-oss-20b", "engine": engine},
        model="gpt-oss-20b",
    )
    for way, message in ways(model.bind_tools([add], stop=stop), "go").items():
        assert called(message) == [("add", {"a": 3, "b": 3})], way
    assert not any(body.get("stream") for body in dialect.requests)
    assert len(list(model.stream("go"))) > 1


def test_whether_tool_steps_stream_is_decided_anew_for_another_model(serve):
    """`configurable_fields` and `model_copy` carry all fields along; the user's own value wins."""
    model, dialect = serve(
        _streams_lose_calls, dialect={"served_model": "gpt-oss-20b"}, model="qwen3"
    )
    bound = model.bind_tools([add])
    field = ConfigurableField(id="model")
    for other in (
        model.configurable_fields(model=field)
        .bind(tools=[add])
        .with_config(configurable={"model": "gpt-oss-20b"}),
        model.model_copy(update={"model": "gpt-oss-20b"}).bind_tools([add]),
        bound.bind(model="gpt-oss-20b"),
    ):
        assert [called(chunk) for chunk in other.stream("go") if chunk.tool_calls] == [
            [("add", {"a": 3, "b": 3})]
        ]
    assert not any(body.get("stream") for body in dialect.requests)
    chosen = model.model_copy(update={"model": "gpt-oss-20b", "disable_streaming": False})
    assert "".join(chunk.text for chunk in chosen.bind_tools([add]).stream("go")) == "lost"


def test_tool_messages_are_sent_as_plain_text(serve):
    """The server would show the model the Python form of a list."""
    model, dialect = serve(Reply(text="ok"))
    blocks = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    failed = ToolMessage("no such file", tool_call_id="2", status="error")
    calls = [{"name": "add", "args": {"a": 1}, "id": n} for n in ("1", "2")]
    model.invoke(
        [
            HumanMessage("go"),
            AIMessage("", tool_calls=calls),
            ToolMessage(blocks, tool_call_id="1"),
            failed,
        ]
    )
    sent = dialect.requests[0]["messages"]
    assert [m["content"] for m in sent[2:]] == ["one\ntwo", "no such file"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    "cut", ['{"a": 1', '{"a": [1, 2', '{"a": "/home/us', '{"a": "x\\\\', '{"a', "{"]
)
def test_a_call_that_was_cut_off_is_no_valid_one(serve, cut):
    """LangChain would complete its arguments, and an agent would run it."""
    call = {"index": 0, "id": "1", "function": {"name": "shout", "arguments": cut}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "length"}
    event = json.dumps({"choices": [choice]}).encode()
    model, _ = serve(Reply(raw=b"data: " + event + b"\n\ndata: [DONE]\n\n"))
    with pytest.warns(CutOffCallWarning, match="max_tokens"):
        whole = sum_of(model.bind_tools([shout]).stream("go"))
    assert whole.tool_calls == []
    assert whole.invalid_tool_calls[0]["name"] == "shout"


def test_text_of_a_hundred_thousand_brackets_is_text(serve):
    """It looks like the beginning of a call, deeper than anybody reads."""
    text = '{"name": ' + "[" * 100_000
    model, _ = serve(Reply(text=text, pieces=[text]))
    assert model.bind_tools([add]).invoke("go").content == text


def test_a_function_that_nobody_can_describe_is_told():
    """A name in its annotations that does not exist is an error of the caller's."""

    def strange(a: "Gone") -> None:  # noqa: F821
        """Do something."""

    with pytest.raises(ConfigurationError, match="Gone"):
        openai_tools([strange])


def test_tools_that_are_forbidden_are_not_called(serve):
    """`none` reaches the server, which withholds the tools, and text stays text."""
    text = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    model, dialect = serve(Reply(text=text))
    message = model.bind_tools([add], tool_choice="none").invoke("go")
    assert (message.content, message.tool_calls) == (text, [])
    assert dialect.requests[0]["tool_choice"] == "none"


def test_a_call_that_a_parser_took_out_of_a_stream_is_asked_for_again(serve):
    """Asked whole, the server leaves its text, and the call is read here."""
    text = '{{"name": "add", "arguments": {"a": 1, "b": 2}}}}'
    model, dialect = serve(
        lambda body: Reply(usage=(9, 20)) if body.get("stream") else Reply(text=text)
    )
    bound = model.bind_tools([add])
    for message in ways(bound, "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2})]
        assert message.content == ""
    assert [bool(body.get("stream")) for body in dialect.requests].count(True) == 2
