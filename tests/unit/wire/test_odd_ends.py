"""How an answer ended and what it took, in the words of other servers."""

import json

import pytest
from fakes.calls import ways
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.events import stream

from langchain_car_vllm import EmptyAnswerWarning
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.wire.answer.token_usage import Usage, read_usage
from langchain_car_vllm.wire.errors import (
    AuthenticationError,
    IncompleteAnswerError,
    InvalidRequestError,
    PromptTooLongError,
    RateLimitError,
    ServerFailedError,
)

HELLO = {"choices": [{"index": 0, "delta": {"content": "hello"}}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


def ending(reason, **more):
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason, **more}]}


BROKEN = {
    "in capitals": [HELLO, ending("ERROR")],
    "of deepseek": [HELLO, ending("insufficient_system_resource")],
    "of zhipu": [HELLO, ending("network_error")],
    "given up": [HELLO, ending("cancelled")],
    "beside a choice": [{**HELLO, "error": {"message": "boom", "code": 502}}, STOP],
    "in a choice": [HELLO, ending("error", error={"message": "boom", "code": 502})],
    "a message alone": [HELLO, {"message": "boom"}],
    "a type alone": [HELLO, {"type": "error"}],
    "no code": [HELLO, {"code": None, "message": "boom"}],
    "a code and a word": [HELLO, {"code": "InvalidParameter", "msg": "boom"}],
}


@pytest.mark.parametrize("events", BROKEN.values(), ids=BROKEN)
def test_half_an_answer_is_no_whole_one(serve, events):
    """Whatever the server calls the failure, and whether an end follows."""
    model, _ = serve(stream(*events), max_retries=0)
    with pytest.raises(CarVllmError, match=r"boom|failed|broke|error"):
        list(model.stream("go"))


@pytest.mark.parametrize("word", ["null", "None"])
def test_a_word_for_no_reason_is_none(serve, word):
    """Some send it with each event, also with the last one that came through."""
    event = {"choices": [{**HELLO["choices"][0], "finish_reason": word}]}
    model, _ = serve(stream(event, done=False), max_retries=0)
    with pytest.raises(IncompleteAnswerError):
        model.invoke("go")


FAILURE_LINES = {
    "llama.cpp": b'error: {"code":400,"message":"boom","type":"invalid_request_error"}',
    "llama.cpp, a text": b"error: boom",
    "bare": b'{"error":{"message":"boom"}}',
    "an event": b'event: error\ndata: {"message":"boom"}',
    "an event of several lines": b'event: error\ndata: {\ndata: "reason": "boom"\ndata: }',
    "an event, a text": b'event: error\ndata: "boom"',
    "an event, no JSON": b"event: error\ndata: boom",
    "an event without a word": b"event: error\ndata:",
}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("line", FAILURE_LINES.values(), ids=FAILURE_LINES)
def test_a_failure_outside_of_the_data_is_one(serve, line, end):
    """It was passed over, and the end behind it made half an answer a whole one."""
    raw = b"\n\n".join([stream(HELLO, done=False).raw.strip(), line, b"data: [DONE]", b""])
    model, _ = serve(Reply(raw=raw.replace(b"\n", end)), max_retries=0)
    with pytest.raises(CarVllmError, match=r"boom|no reason given"):
        list(model.stream("go"))


def test_an_event_after_that_of_another_name_is_read(serve):
    """The name holds for one event alone, and a text may have the word in it."""
    word = {"choices": [{"index": 0, "delta": {"content": "an error: none"}}]}
    raw = b"event: errors\n" + stream(word, STOP).raw
    model, _ = serve(Reply(raw=raw))
    assert model.invoke("go").text == "an error: none"


@pytest.mark.parametrize(
    ("reason", "meant"),
    [
        ("model_context_window_exceeded", "length"),
        ("MAX_OUTPUT_TOKENS", "length"),
        ("ERROR_LIMIT", "length"),
        ("COMPLETE", "stop"),
        ("sensitive", "content_filter"),
        ("tool_call", "tool_calls"),
    ],
)
def test_a_reason_means_what_the_server_calls_so(serve, reason, meant):
    """An answer that was cut off must not look whole."""
    model, _ = serve(stream(HELLO, ending(reason)))
    message = model.invoke("go")
    assert message.response_metadata["finish_reason"] == meant


@pytest.mark.parametrize("reason", ["content_filter", "malformed_function_call"])
def test_an_empty_answer_says_for_what_the_server_ended_it(serve, reason):
    """No message is empty in silence."""
    model, _ = serve(stream(ending(reason)))
    with pytest.warns(EmptyAnswerWarning, match=reason):
        list(model.stream("go"))


@pytest.mark.parametrize("sign", [b"data:\n\n", b"data: null\n\n", b'data: {"error": ""}\n\n'])
def test_an_event_that_says_nothing_is_a_sign_of_life(serve, sign):
    """Gateways send such while they wait."""
    reply = stream(HELLO, STOP)
    reply.raw = sign + reply.raw.replace(b"\n\n", b"\n\n" + sign)
    model, _ = serve(reply)
    assert "".join(chunk.text for chunk in model.stream("go")) == "hello"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "ping", "message": "still here"},
        {"status": "queued", "message": "three before you"},
        {"code": 0, "message": "Success", "choices": [], "usage": USAGE},
        {"code": 200, "msg": "ok"},
    ],
)
def test_a_word_that_is_no_failure_ends_no_stream(serve, event):
    """Gateways tell of a queue, and put a code of success into each event."""
    model, _ = serve(stream(event, HELLO, STOP))
    assert "".join(chunk.text for chunk in model.stream("go")) == "hello"


CONTENTS = {
    "one block": {"type": "text", "text": "hello"},
    "a source": [{"type": "text", "text": "hello"}, {"type": "reference", "reference_ids": [1]}],
    "OpenAI's newer API": [{"type": "output_text", "text": "hello"}],
    "Bedrock": [{"text": "hello"}],
    "a refusal": [{"type": "refusal", "refusal": "hello"}],
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_text_in_blocks_of_any_server_is_the_answer(serve, content):
    """An answer is not lost for how its text is wrapped."""
    model, _ = serve(stream({"choices": [{"delta": {"content": content}}]}, STOP))
    assert "".join(chunk.text for chunk in model.stream("go")) == "hello"


def test_groqs_count_counts(serve):
    """It stands in a field of its own, whose first event has none."""
    model, _ = serve(stream({**HELLO, "x_groq": {"id": "1"}}, {**STOP, "x_groq": {"usage": USAGE}}))
    assert model.invoke("go").usage_metadata["total_tokens"] == 7


@pytest.mark.parametrize("usage", ["n/a", [], {"prompt_tokens": "many"}, {"total_tokens": 7}, 5])
def test_no_answer_is_lost_for_how_its_tokens_are_told(serve, usage):
    """They are not counted then."""
    model, _ = serve(stream(HELLO, {**STOP, "usage": usage}))
    message = model.invoke("go")
    assert (message.text, message.usage_metadata) == ("hello", None)


ANY = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*USAGE, "usage", "prompt_tokens_details"]), inner)
    ),
    max_leaves=5,
)


@given(ANY)
def test_any_count_is_read_or_none(told):
    """Whatever stands there."""
    found = read_usage(told)
    assert found is None or isinstance(found, Usage)
    assert read_usage({**USAGE, "prompt_tokens_details": told}).prompt == 5


@pytest.mark.parametrize("more", [{}, {"finish_reason": None}, {"finish_reason": ""}])
def test_a_document_that_came_whole_needs_no_reason(serve, more):
    """It was told as an answer that broke off, and repeated."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, **more}
    model, _ = serve(Reply(raw=json.dumps({"choices": [choice]}).encode()))
    for message in ways(model, "go").values():
        assert message.text == "hello"
        assert message.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "rate_limit_error", "code": "rate_limit_exceeded"}, RateLimitError),
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, RateLimitError),
        ({"type": "invalid_request_error", "code": "unsupported_parameter"}, InvalidRequestError),
        ({"code": "InvalidParameter"}, InvalidRequestError),
        ({"type": None, "code": "invalid_api_key"}, AuthenticationError),
        ({"code": "context_length_exceeded"}, PromptTooLongError),
        ({"type": "server_error", "code": "internal"}, ServerFailedError),
        ({"type": "invalid_request_error", "code": "503"}, ServerFailedError),
        ({"type": "rate_limit_error", "code": 1301}, RateLimitError),
    ],
)
def test_a_failure_has_the_class_that_its_words_stand_for(serve, error, kind):
    """Where its code is a word: a request that cannot be served was called worth repeating."""
    model, _ = serve(stream(HELLO, {"error": {"message": "boom", **error}}), max_retries=0)
    with pytest.raises(kind, match="boom") as caught:
        list(model.stream("go"))
    assert caught.type is kind
