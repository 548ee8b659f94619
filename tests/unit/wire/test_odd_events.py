"""Events as other servers send them, read as ChatOpenAI reads them; every call has an id."""

import asyncio
import json
import time

import pytest
from fakes.calls import called, shout, sum_of, ways
from fakes.reply import Reply
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.tools import tool
from unit.wire.calling import tool as tool_of
from unit.wire.events import call_event, part, stream

from langchain_car_vllm import CutOffCallWarning, InvalidCallWarning
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.support.printable import encodable
from langchain_car_vllm.wire.answer.reader import Answer
from langchain_car_vllm.wire.errors import IncompleteAnswerError, RateLimitError, ServerFailedError
from langchain_car_vllm.wire.request.tools import server_name

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
HELLO = {"choices": [{"index": 0, "delta": {"content": "hello"}}]}
CALL = {"index": 0, "id": "1", "function": {"name": "now", "arguments": '{"a": 1}'}}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


ODD = {
    "choices null": [HELLO, STOP, {"choices": None, "usage": USAGE}],
    "no choices": [HELLO, STOP, {"usage": USAGE}],
    "delta null": [HELLO, {"choices": [{"delta": None, "finish_reason": "stop"}], "usage": USAGE}],
    "no delta": [HELLO, {"choices": [{"finish_reason": "stop"}], "usage": USAGE}],
    "ping": [{"type": "ping"}, HELLO, {"type": "ping"}, STOP, {"choices": [], "usage": USAGE}],
    "done alone": [HELLO, {"choices": [], "usage": USAGE}],
    "error null": [{**HELLO, "error": None}, {**STOP, "error": None, "usage": USAGE}],
    "blocks": [
        {"choices": [{"delta": {"content": [{"type": "text", "text": "hello"}]}}]},
        {**STOP, "usage": USAGE},
    ],
}


@pytest.mark.parametrize("events", ODD.values(), ids=ODD)
def test_an_odd_event_does_not_end_a_stream(serve, events):
    """What has neither text nor error is passed over, and the usage counts wherever it is."""
    model, _ = serve(stream(*events))
    message = None
    for chunk in model.stream("go"):
        message = chunk if message is None else message + chunk
    assert message.text == "hello"
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.usage_metadata["total_tokens"] == 7


def test_tokens_that_were_thought_are_counted_apart(serve):
    """As servers of OpenAI's kind tell them, and as tracers show them."""
    usage = {**USAGE, "completion_tokens_details": {"reasoning_tokens": 2, "text_tokens": 0}}
    model, _ = serve(stream(HELLO, {**STOP, "usage": usage}))
    for message in ways(model, "go").values():
        assert message.usage_metadata["output_token_details"] == {"reasoning": 2}


FAILURES = {
    "a text": {"error": "boom"},
    "a detail": {"detail": "boom"},
    "a detail with more": {"detail": {"message": "boom", "code": 503}},
    "a message with a code": {"message": "boom", "code": 500, "type": "server_error"},
    "an object": {"object": "error", "message": "boom", "code": 400},
    "a type": {"type": "error", "message": "boom"},
}


@pytest.mark.parametrize("event", FAILURES.values(), ids=FAILURES)
def test_a_failure_in_any_form_is_no_end(serve, event):
    """Half an answer is not taken for a whole one, whatever the server calls its failure."""
    model, _ = serve(stream(HELLO, event), max_retries=0)
    with pytest.raises(CarVllmError, match="boom"):
        list(model.stream("go"))


def test_a_message_in_one_event_is_the_answer(serve):
    """Some gateways stream what came whole; where the parts came before, it is no second one."""
    whole = {"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    for events in ([{"choices": [whole]}], [HELLO, {"choices": [whole]}]):
        model, _ = serve(stream(*events))
        assert "".join(chunk.text for chunk in model.stream("go")) == "hello"


@pytest.mark.parametrize("cut", [1, 2, 4, 100])
def test_a_mark_at_the_beginning_of_a_stream_hides_no_event(cut):
    """Some gateways begin what they send with the mark of UTF-8."""
    answer = Answer(streamed=True)
    raw = b"\xef\xbb\xbf" + stream(HELLO, STOP).raw
    deltas = [d for at in range(0, len(raw), cut) for d in answer.feed(raw[at : at + cut])]
    assert "".join(delta.text for delta in [*deltas, *answer.end()]) == "hello"


@pytest.mark.parametrize("place", ["content", "reasoning_content", "reasoning", "arguments"])
@pytest.mark.parametrize("after", [["\ude00!"], ["", "\ude00", "!"], ["!"], []])
def test_a_character_may_be_cut_in_two(serve, place, after):
    """An emoji is a pair in JSON; what comes of a half without the other can be written."""
    parts = ["Hi \ud83d", *after]
    if place == "arguments":
        parts = ['{"a": "Hi \ud83d', *after, '"}']
        events = [call_event(part(None, text, index=0)) for text in parts]
        events[0] = call_event(part("now", parts[0], index=0, id="1"))
    else:
        events = [{"choices": [{"index": 0, "delta": {place: text}}]} for text in parts]
    model, _ = serve(stream(*events, STOP))
    whole = sum_of(model.bind_tools([now]).stream("go"))
    if place == "arguments":
        said = whole.tool_calls[0]["args"]["a"]
    else:
        said = whole.text if place == "content" else whole.additional_kwargs["reasoning_content"]
    assert said == "Hi " + encodable("\ud83d" + "".join(after))


def test_half_a_character_arrives_as_one_that_can_be_written(serve):
    """An answer that could not be sent back would end its thread."""
    event = {"choices": [{"index": 0, "delta": {"content": "a\ud800b", "reasoning": "\udfff"}}]}
    model, _ = serve(stream(event, STOP))
    answer = sum_of(model.stream("go"))
    assert answer.text == "a\N{REPLACEMENT CHARACTER}b"
    assert answer.model_dump_json()


@pytest.mark.parametrize("depth", [100, 600, 800])
def test_a_call_may_nest_as_deeply_as_json_can_be_read(serve, depth):
    """It is one in every way to call, and goes back in the history; it was a `RecursionError`."""
    arguments = '{"a": ' * depth + "1" + "}" * depth
    event = call_event(part("now", arguments, index=0, id="1"), finish="tool_calls")
    model, _ = serve(lambda body: Reply(text="ok") if len(body["messages"]) > 1 else stream(event))
    for message in ways(model.bind_tools([now]), "go").values():
        assert len(message.tool_calls) == 1
        history = [HumanMessage("go"), message, ToolMessage("noon", tool_call_id="1")]
        assert model.invoke(history).text == "ok"
        assert model.get_num_tokens_from_messages(history) > 0


@pytest.mark.parametrize(
    "parts",
    [
        [part("now", '{"a": 1}', index=0, id=5)],
        [part(None, None, index=0, id="1"), part("now", '{"a": 1}', index=0, id=None)],
        [part(None, '{"a"', index=0, id="1"), part("now", ": 1}", index=0, id=None)],
        [part("no", index=0, id="1"), part("w", index=0), part(None, '{"a": 1}', index=0)],
        [part("no", index=0, id="1"), part("now", index=0), part("now", '{"a": 1}', index=0)],
        [part("no", '{"a"', index=0, id="1"), part("w", ": 1}", index=0)],
        [part("no", '{"a"', index=0), part("w", ": 1}", index=0)],
        [part("now", '{"a"', index=0, id="1"), part(None, ": 1}", index=0, id="2")],
        [part("now", '{"a"', index=0, id="1"), part("now", ": 1}", index=0, id="1")],
    ],
)
def test_parts_of_one_call_are_put_together(serve, parts):
    """Whatever servers leave out of the first, or make up anew for each."""
    model, _ = serve(stream(*(call_event(p) for p in parts), call_event(finish="tool_calls")))
    (call,) = sum_of(model.bind_tools([now]).stream("go")).tool_calls
    assert (call["name"], call["args"]) == ("now", {"a": 1})
    assert isinstance(call["id"], str)


@pytest.mark.parametrize("arguments", ['{"a": 1}', "", None])
def test_the_alias_of_a_tool_may_come_in_pieces(serve, arguments):
    """The name behind it comes out, once it is whole; a beginning of it may be a tool as well."""
    tools, alias = [tool_of("a.b"), tool_of("a")], server_name("a.b")
    whole = [part(piece, index=0, id="1") for piece in (alias[:1], alias[1:4], alias[4:])]
    for parts, name in ((whole, "a.b"), (whole[:1], "a")):
        events = [call_event(p) for p in (*parts, part(None, arguments, index=0))]
        model, _ = serve(stream(*events, call_event(finish="tool_calls")))
        (call,) = sum_of(model.bind_tools(tools).stream("go")).tool_calls
        assert call["name"] == name


@pytest.mark.parametrize("reason", ["MAX_TOKENS", "max_tokens", "model_length", "LENGTH"])
def test_a_call_that_was_cut_off_is_none_whatever_the_server_calls_it(serve, reason):
    """LangChain completes it otherwise, and an agent runs half a command."""
    cut = call_event(part("now", '{"path": "/tmp/a', index=0, id="1"), finish=reason)
    model, _ = serve(stream(cut))
    with pytest.warns(CutOffCallWarning):
        answer = sum_of(model.bind_tools([now]).stream("go"))
    assert not answer.tool_calls
    assert answer.response_metadata["finish_reason"] == "length"


def test_tokens_are_counted_under_either_name(serve):
    """Gateways to Anthropic's models say `input_tokens`."""
    usage = {"choices": [], "usage": {"input_tokens": 5, "output_tokens": 2}}
    model, _ = serve(stream(HELLO, STOP, usage))
    assert sum_of(model.stream("go")).usage_metadata["total_tokens"] == 7


def test_tokens_are_counted_where_they_are_told_beside_the_reason(serve):
    """Moonshot's servers put them into the choice."""
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]}
    model, _ = serve(stream(HELLO, end))
    assert sum_of(model.stream("go")).usage_metadata["total_tokens"] == 7


def test_a_call_without_a_name_is_an_error(serve):
    """No agent could do anything with it."""
    model, _ = serve(stream(call_event(part(None, "{}", index=0, id="1"), finish="tool_calls")))
    with pytest.raises(ServerFailedError, match="without a name"):
        list(model.stream("go"))


@pytest.mark.parametrize("blank", [b"", b" \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["events", "document"])
def test_a_server_that_does_not_heed_what_was_asked_for_is_read(serve, kind, blank):
    """Some gateways send a document where a stream was asked for, or the other way round."""
    message = {"content": "hello", "tool_calls": [CALL]}
    document = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    parts = [HELLO, call_event(CALL, finish="tool_calls"), {"choices": [], "usage": USAGE}]
    raw = stream(*parts).raw if kind == "events" else json.dumps(document).encode()
    model, _ = serve(Reply(raw=blank + raw))
    for answer in ways(model, "go").values():
        assert answer.text == "hello"
        assert answer.tool_calls[0]["args"] == {"a": 1}
        assert answer.usage_metadata["total_tokens"] == 7


@pytest.mark.parametrize("raw", [b"<!doctype html><p>", b'"text"', b"[]", b'{"error": "no"}'])
def test_what_is_not_a_stream_is_told_as_what_it_is(serve, raw):
    """It did not break off, and no `timeout` would help."""
    model, _ = serve(Reply(raw=raw))
    with pytest.raises(ServerFailedError) as caught:
        list(model.stream("go"))
    assert "broke off" not in str(caught.value)


@pytest.mark.parametrize("seconds", ["9", "1e9"])
def test_a_refusal_is_told_where_no_time_is_left_to_repeat(serve, seconds):
    """A server may ask for more patience than the `timeout` has; then nobody sleeps in vain."""
    model, _ = serve(Reply(status=429, headers={"retry-after": seconds}), timeout=6)
    since = time.monotonic()
    with pytest.raises(RateLimitError):
        model.invoke("go")
    with pytest.raises(RateLimitError):
        asyncio.run(model.ainvoke("go"))
    assert time.monotonic() - since < 6


def test_a_refusal_is_what_was_said(serve):
    """OpenAI's models refuse beside the content, which would be empty."""
    model, _ = serve(stream({"choices": [{"delta": {"refusal": "I cannot."}}]}, STOP))
    assert "".join(chunk.text for chunk in model.stream("go")) == "I cannot."


def test_thinking_in_blocks_is_reasoning(serve):
    """Mistral's blocks have the thought beside the text."""
    blocks = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]},
        {"type": "text", "text": "hello"},
    ]
    model, _ = serve(stream({"choices": [{"delta": {"content": blocks}}]}, STOP))
    chunks = list(model.stream("go"))
    assert "".join(chunk.text for chunk in chunks) == "hello"
    assert chunks[0].additional_kwargs["reasoning_content"] == "hmm"


def test_a_stream_without_any_end_is_still_an_error(serve):
    """Neither a reason nor [DONE]: the rest is missing."""
    model, _ = serve(stream(HELLO, done=False))
    with pytest.raises(IncompleteAnswerError):
        list(model.stream("go"))


def test_the_number_of_a_failure_may_be_a_text(serve):
    """LiteLLM sends the status so."""
    model, _ = serve(stream({"error": {"message": "slow down", "code": "429"}}), max_retries=0)
    with pytest.raises(RateLimitError, match="slow down"):
        list(model.stream("go"))


CALLS = {
    "no id": [call_event(part("shout", '{"text": "a"}', index=0))],
    "empty id": [call_event(part("shout", '{"text": "a"}', index=0, id=""))],
    "no index": [call_event(part("shout", '{"text": "a"}', id=None))],
    "object": [call_event(part("shout", {"text": "a"}, index=0))],
    "id later": [
        call_event(part("shout", '{"text"', index=0)),
        call_event(part(None, ': "a"}', index=0, id="later")),
    ],
    "all again": [
        call_event(part("shout", '{"text"', index=0, id="x")),
        call_event(part("shout", ': "a"}', index=0, id="x")),
    ],
    "name again without id": [
        call_event(part("shout", '{"text"', index=0)),
        call_event(part("shout", ': "a"}', index=0)),
    ],
}


@pytest.mark.parametrize("events", CALLS.values(), ids=CALLS)
def test_every_call_is_whole_and_has_an_id(serve, events):
    """An agent needs the id to answer the call."""
    model, _ = serve(stream(*events, STOP))
    message = None
    for chunk in model.bind_tools([shout]).stream("go"):
        message = chunk if message is None else message + chunk
    assert called(message) == [("shout", {"text": "a"})]
    assert message.tool_calls[0]["id"]


def test_calls_without_id_and_index_stay_apart(serve):
    """Two whole calls in two events at the same place are two."""
    one, two = (call_event(part("shout", json.dumps({"text": text}))) for text in "ab")
    model, _ = serve(stream(one, two, STOP))
    message = None
    for chunk in model.bind_tools([shout]).stream("go"):
        message = chunk if message is None else message + chunk
    assert called(message) == [("shout", {"text": "a"}), ("shout", {"text": "b"})]
    first, second = (call["id"] for call in message.tool_calls)
    assert first != second


def test_an_agent_runs_a_call_that_came_without_an_id(serve):
    """LangChain's tool node refuses a call that it cannot answer."""

    def script(body):
        if body["messages"][-1]["role"] == "tool":
            return stream(HELLO, STOP)
        return stream(call_event(part("now", "{}", index=0)), STOP)

    model, _ = serve(script, streaming=True)
    messages = create_agent(model, [now]).invoke({"messages": "go"})["messages"]
    assert messages[-1].text == "hello"


NOTHING = [None, "", " ", "null", "None", "[]", " null ", "{}", {}, [], "[ ]"]
NOTHING += [json.dumps(text) for text in ("", "{}", "None", " null", "[ ]", '""')]


@pytest.mark.parametrize("arguments", NOTHING, ids=repr)
@pytest.mark.parametrize("cut", [1, 100])
def test_every_way_to_say_no_arguments_is_an_empty_object(serve, arguments, cut):
    """Missing, null, Python's None, blank or a list: streamed in parts, at once, or whole."""
    pieces = [arguments]
    if isinstance(arguments, str) and arguments:
        pieces = [arguments[i : i + cut] for i in range(0, len(arguments), cut)]
    first, *rest = pieces
    events = [call_event(part("now", first, index=0, id="1"))]
    events += [call_event(part(None, piece, index=0)) for piece in rest]

    def script(body):
        if body.get("stream"):
            return stream(*events, STOP)
        whole = {"role": "assistant", "tool_calls": [part("now", arguments, id="1")]}
        choice = {"index": 0, "message": whole, "finish_reason": "tool_calls"}
        return Reply(raw=json.dumps({"choices": [choice]}).encode())

    model, _ = serve(script)
    for way, message in ways(model.bind_tools([now]), "go").items():
        assert called(message) == [("now", {})], way
        assert not message.invalid_tool_calls


def test_an_invalid_call_without_text_is_warned_about(serve):
    """An agent would end with an empty answer and no word."""
    model, _ = serve(stream(call_event(part("shout", "nonsense", index=0, id="1")), STOP))
    with pytest.warns(InvalidCallWarning, match="shout"):
        message = sum_of(model.bind_tools([shout]).stream("go"))
    assert message.invalid_tool_calls[0]["args"] == "nonsense"


def test_half_a_character_in_a_call_can_be_sent_back(serve):
    """JSON can escape it, so that only whoever reads the arguments meets it."""
    escaped = json.dumps({"a\ud800": ["b\ud800", {"c": "\ud83d"}]})
    call = {"index": 0, "id": "1", "function": {"name": "now", "arguments": escaped}}
    model, dialect = serve(stream(call_event(call, finish="tool_calls")))
    answer = sum_of(model.bind_tools([now]).stream("hi"))
    broken = AIMessage("", invalid_tool_calls=[invalid_tool_call(name="t", args="{\udfff", id="2")])
    results = [ToolMessage("r", tool_call_id=n) for n in "12"]
    next(model.stream([HumanMessage("hi"), answer, broken, *results]))
    sent = dialect.requests[-1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"a\ufffd": ["b\ufffd", {"c": "\ufffd"}]}
