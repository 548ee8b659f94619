"""A call from end to end: what goes out, what comes back, in all four ways of calling."""

import asyncio
import copy
import json
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import openai
import pytest
from fakes.reply import Reply
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint, Parsers
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.result import to_chunk
from langchain_car_vllm.wire.answer.sse import EventReader
from langchain_car_vllm.wire.exchange.exchange import EmptyAnswerWarning
from langchain_car_vllm.wire.exchange.strategy import body_for
from langchain_car_vllm.wire.transport.clients import (
    Address,
    AsyncClients,
    LoopClients,
    sync_clients,
)


def _streamed(model: ChatVllmMlx, text: str, **given: Any) -> AIMessage:
    whole: AIMessageChunk | None = None
    for chunk in model.stream(text, **given):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


async def _astreamed(model: ChatVllmMlx, text: str, **given: Any) -> AIMessage:
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(text, **given):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


WAYS: dict[str, Callable[..., AIMessage]] = {
    "invoke": lambda model, text, **given: model.invoke(text, **given),
    "ainvoke": lambda model, text, **given: asyncio.run(model.ainvoke(text, **given)),
    "stream": _streamed,
    "astream": lambda model, text, **given: asyncio.run(_astreamed(model, text, **given)),
}


@pytest.fixture(params=WAYS)
def ask(request: pytest.FixtureRequest) -> Callable[..., AIMessage]:
    """Each of the four ways to call."""
    return WAYS[request.param]


def test_every_way_of_calling_gives_the_same_message(serve, ask):
    """Text, reasoning, usage and metadata are those the server gave."""
    model, _ = serve(Reply(text="Hello there", thought="let me think", usage=(21, 3)))
    answer = ask(model, "hi")
    assert answer.content == "Hello there"
    assert answer.additional_kwargs == {"reasoning_content": "let me think"}
    assert answer.usage_metadata == {"input_tokens": 21, "output_tokens": 3, "total_tokens": 24}
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "m"
    assert answer.response_metadata["model_provider"] == "vllm_mlx"


def test_a_batch_of_eight_answers_all(serve):
    """Eight parallel calls of one model object are answered, each with its own text."""
    model, dialect = serve(lambda body: Reply(text=f"echo {body['messages'][-1]['content']}"))
    answers = model.batch([str(n) for n in range(8)])
    assert [answer.content for answer in answers] == [f"echo {n}" for n in range(8)]
    assert len(dialect.requests) == 8


def test_max_tokens_keeps_the_name_the_server_reads(serve, ask):
    """`max_tokens` goes out as such and never as `max_completion_tokens`."""
    model, dialect = serve(max_tokens=9)
    ask(model, "hi")
    ask(model, "hi", max_tokens=5)
    assert [body["max_tokens"] for body in dialect.requests] == [9, 5]
    assert not any("max_completion_tokens" in body for body in dialect.requests)


def test_reasoning_arrives_and_goes_back(serve, ask):
    """What the model thought is kept on the message and sent back in the history."""
    model, dialect = serve(Reply(text="four", thought="two and two"))
    answer = ask(model, "2+2?")
    assert answer.additional_kwargs["reasoning_content"] == "two and two"
    model.invoke([("human", "2+2?"), answer, ("human", "sure?")])
    sent = dialect.requests[-1]["messages"][1]
    assert (sent["role"], sent["content"]) == ("assistant", "four")
    assert sent["reasoning_content"] == "two and two"


def test_reasoning_goes_back_from_v1_blocks_too(serve):
    """With `output_version="v1"` the reasoning is a block of the content."""
    model, dialect = serve(Reply(text="four", thought="two and two"), output_version="v1")
    answer = model.invoke("2+2?")
    assert [block["type"] for block in answer.content] == ["reasoning", "text"]
    model.invoke([("human", "2+2?"), answer, ("human", "sure?")])
    sent = dialect.requests[-1]["messages"][1]
    assert sent == {"role": "assistant", "content": "four", "reasoning_content": "two and two"}


@pytest.mark.parametrize("one_index", [False, True])
def test_streamed_reasoning_and_calls_stay_apart_in_v1(serve, one_index):
    """With `output_version="v1"` a streamed call is not merged into the reasoning block."""
    calls = [("add", {"a": 3}), ("add", {"a": 4})]
    reply = Reply(thought="use the tool", calls=calls, one_index=one_index)
    model, _ = serve(reply, output_version="v1")
    whole = _streamed(model, "go", tools=[_tool("add")])
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds == ["reasoning", "tool_call", "tool_call"]
    assert [call["args"] for call in whole.tool_calls] == [{"a": 3}, {"a": 4}]


def test_a_second_event_loop_works_and_leaves_no_socket(serve):
    """Each `asyncio.run` gets a client of its own, closed with its loop."""
    model, _ = serve()
    for _ in range(3):
        assert asyncio.run(model.ainvoke("hi")).content


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h", "socks", "nonsense"])
def test_nothing_in_the_environment_redirects_a_request(serve, monkeypatch, scheme):
    """Neither OpenAI's variables nor a proxy of any kind change where a request goes or as whom."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LANGSMITH_GATEWAY", "true")
    monkeypatch.setenv("LANGSMITH_GATEWAY_API_KEY", "lsv2-secret")
    model, dialect = serve()
    assert model.invoke("hi").content
    assert asyncio.run(model.ainvoke("hi")).content
    assert "secret" not in str(dialect.headers)
    assert not any("openai-organization" in headers for headers in dialect.headers)


def test_the_clients_are_those_the_sdk_is_made_for():
    """It comes with an HTTP library of its own, which reads nothing from the environment here."""
    address = Address("http://127.0.0.1:9/v1", None)
    clients = sync_clients(address)
    assert isinstance(clients.http, openai.DefaultHttpxClient)

    async def made() -> AsyncClients:
        return await LoopClients(address).current()

    async_clients = asyncio.run(made())
    assert isinstance(async_clients.http, openai.DefaultAsyncHttpxClient)
    assert async_clients.sdk.max_retries == clients.sdk.max_retries == 0


def test_heartbeats_do_not_end_an_asynchronous_stream(serve, monkeypatch):
    """Comments before the first token are no answer and no failure, however long they last."""
    monkeypatch.setenv("LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S", "0.05")
    model, _ = serve(Reply(text="very late", heartbeats=20, pause=0.2))
    assert asyncio.run(_astreamed(model, "hi", timeout=10)).content == "very late"


@pytest.mark.parametrize("given", [{}, {"extra_headers": {"X-Other": "1"}}])
def test_a_header_of_the_users_takes_the_place_of_ours(serve, given):
    """A gateway has a key of its own, however the user writes the header's name."""
    model, dialect = serve(default_headers={"Authorization": "Basic abc", "User-Agent": "mine"})
    model.invoke("hi", **given)
    assert dialect.headers[-1]["authorization"] == "Basic abc"
    assert dialect.headers[-1]["user-agent"] == "mine"
    model.invoke("hi", extra_headers={"AUTHORIZATION": "Basic def"})
    assert dialect.headers[-1]["authorization"] == "Basic def"


def test_a_forked_child_has_connections_of_its_own(serve):
    """Over its parent's each could get the other's answer."""
    model, dialect = serve()
    model.invoke("hi")
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            status = 0 if model.invoke("from the child").content else 1
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(set(dialect.peers)) == 2


def test_usage_is_counted_once(serve):
    """The server tells it on the finish chunk and again on one of its own."""
    model, _ = serve(Reply(text="one two three", usage=(21, 3), cached=16))
    chunks = list(model.stream("hi"))
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert counted == [
        {
            "input_tokens": 21,
            "output_tokens": 3,
            "total_tokens": 24,
            "input_token_details": {"cache_read": 16},
        }
    ]


def test_a_parser_that_swallows_the_answer_yields_no_empty_message(serve, ask):
    """Where all of a finished answer came as reasoning, it is the answer as well."""
    model, _ = serve(Reply(thought="The answer is four."))
    assert ask(model, "2+2?").content == "The answer is four."


def test_thinking_without_an_end_is_said_aloud(serve, ask):
    """An answer that ran out of tokens while thinking warns, and keeps the thought."""
    model, _ = serve(Reply(thought="hmm and hmm", finish="length"))
    with pytest.warns(UserWarning, match="max_tokens"):
        answer = ask(model, "2+2?")
    assert answer.content == ""
    assert answer.additional_kwargs["reasoning_content"] == "hmm and hmm"


@pytest.mark.parametrize(
    ("tokens", "said"), [(3, "wrote 3 tokens"), (2, "ended its turn at once"), (1, "at once")]
)
def test_no_answer_is_empty_in_silence(serve, ask, tokens, said):
    """Tokens of which nothing came are told as lost, an end of turn alone as what it is."""
    model, _ = serve(Reply(usage=(21, tokens)))
    with pytest.warns(EmptyAnswerWarning, match=said) as told:
        assert ask(model, "hi").content == ""
    assert len(told) == 1


@pytest.mark.parametrize("given", [{"max_tokens": 1}, {"stop": ["hi"]}])
def test_an_answer_that_was_to_be_empty_is_no_surprise(serve, ask, given):
    """One token is enough to warm a server up, and a stop text may come first."""
    model, dialect = serve(Reply(text="hi there", usage=(21, 1)))
    dialect.engine = "simple"
    if "max_tokens" in given:
        dialect.script = lambda body: Reply(usage=(21, 1))
    assert ask(model, "hi", **given).content == ""


def test_an_answer_that_ran_out_of_tokens_says_so_whatever_the_server_says(serve, ask):
    """The simple engine calls every answer about media whole, and counts two tokens too many."""
    model, _ = serve(Reply(text="half an answ", usage=(21, 10)))
    assert ask(model, "hi", max_tokens=8).response_metadata["finish_reason"] == "length"
    assert ask(model, "hi", max_tokens=10).response_metadata["finish_reason"] == "stop"
    model, _ = serve(Reply(thought="half a thou", usage=(21, 10)))
    with pytest.warns(EmptyAnswerWarning, match="max_tokens"):
        assert ask(model, "hi", max_tokens=8).text == ""


def test_a_wish_about_thinking_that_is_none_is_refused(serve):
    """In a call as in the constructor."""
    model, dialect = serve()
    with pytest.raises(ConfigurationError, match="reasoning") as caught:
        model.invoke("hi", reasoning="extreme")
    assert "high" in (caught.value.hint or "")
    assert dialect.requests == []


def test_the_last_chunk_says_so_and_no_empty_one_comes_before(serve):
    """A stream has its texts and one closing chunk, nothing else."""
    model, _ = serve(Reply(text="one two"))
    chunks = list(model.stream("hi"))
    assert [chunk.content for chunk in chunks] == ["one ", "two", ""]
    assert [chunk.chunk_position for chunk in chunks] == [None, None, "last"]


EVENT = {"id": "1", "choices": [{"delta": {"content": "a\\nb"}, "index": 0}], "n": {}}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_of_several_lines_are_read(end: str, size: int):
    """As the specification has them; blank lines between those of one line are not needed."""
    written = json.dumps(EVENT, indent=1).splitlines()
    lines = [*(f"data: {line}" for line in written), "", ": heartbeat", 'data: {"n": 2}']
    lines += ['data: {"n": 3}', "", *(f"data:{line}" for line in written), "", "data: [DONE]"]
    raw = end.join(lines).encode()
    reader = EventReader()
    found = [p for n in range(0, len(raw), size) for p in reader.feed(raw[n : n + size])]
    found += reader.end()
    assert found.pop() == b"[DONE]"
    assert [json.loads(payload) for payload in found] == [EVENT, {"n": 2}, {"n": 3}, EVENT]


def test_a_last_event_of_several_lines_needs_no_end():
    """The stream is over: there is nothing to wait for; what is held is counted."""
    reader = EventReader()
    assert reader.feed(b'data: {"n":\ndata: 1') == []
    assert reader.held == len(b'{"n":') + len(b"data: 1")
    assert reader.end() == [b'{"n":\n1']


def test_a_long_event_in_small_parts_is_read_at_once():
    """The time it takes grows with its length, not with the square of it."""
    reader = EventReader()
    found: list[bytes] = []
    for _ in range(1_000_000):
        found += reader.feed(b"x")
    assert reader.feed(b"\ndata: 1\nda") == [b"1"]
    assert found == []
    assert reader.feed(b"ta: 2") == []
    assert reader.end() == [b"2"]


def test_leaving_a_stream_ends_the_generation(serve):
    """Closing the stream closes the connection, which is the server's only cancel."""
    gate = threading.Event()
    model, dialect = serve(Reply(text="w " * 400, pause=0.005))
    stream = model.stream("hi")
    next(stream)
    stream.close()
    _wait_until(lambda: dialect.closed == 1)
    gate.set()


@pytest.mark.parametrize("way", ["ainvoke", "astream", "astream_events", "forced"])
async def test_cancelling_a_task_ends_the_generation(serve, way):
    """However it was called, a cancelled task closes its connection."""
    model, dialect = serve(Reply(text="w " * 400, pause=0.005), dialect={"engine": "simple"})

    async def events() -> None:
        async for _ in model.astream_events("hi", version="v2"):
            pass

    forced = model.bind_tools([_tool("add"), _tool("sub")], tool_choice="any")
    ways = {
        "ainvoke": lambda: model.ainvoke("hi"),
        "astream": lambda: _astreamed(model, "hi"),
        "astream_events": events,
        "forced": lambda: forced.ainvoke("hi"),
    }
    task = asyncio.create_task(ways[way]())
    await asyncio.to_thread(_wait_until, lambda: bool(dialect.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(_wait_until, lambda: dialect.closed == 1)


def _tool(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
            },
        },
    }


def _wait_until(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(500):
        if condition():
            return
        event.wait(0.01)
    pytest.fail("it did not happen within five seconds")


@pytest.mark.parametrize("engine", ["simple", "batched"])
def test_a_stock_batching_server_is_kept_from_mixing_up_its_grammars(serve, engine):
    """Each of its requests carries a bias of nothing, so that no row of a batch is without one."""
    model, dialect = serve(dialect={"engine": engine})
    model.invoke("hi")
    assert dialect.requests[0].get("logit_bias") == ({"0": 0.0} if engine == "batched" else None)


def test_earlier_thoughts_stay_in_the_prompt_of_a_model_that_thinks():
    """So that the prefix cache holds over turns; the user's own wish wins."""
    messages = [{"role": "user", "content": "hi"}]
    thinking = Endpoint("http://127.0.0.1:9/v1", None, "m", parsers=Parsers(reasoning="qwen3"))
    plain = Endpoint("http://127.0.0.1:9/v1", None, "m", parsers=Parsers())

    def template(endpoint: Endpoint, **given: Any) -> Any:
        return body_for(endpoint, messages, given).get("chat_template_kwargs")

    assert template(plain) is None
    assert template(thinking) == {"preserve_thinking": True}
    assert template(thinking, reasoning=False) == {
        "preserve_thinking": True,
        "enable_thinking": False,
    }
    chosen = {"preserve_thinking": False}
    assert template(thinking, chat_template_kwargs=chosen) == chosen


@pytest.mark.parametrize("delta", [Delta("text"), Delta(thought="thought"), Delta("both", "of")])
def test_a_chunk_made_fast_is_one_made_by_the_book(delta):
    """Copied from a pattern, it equals the validated one and shares nothing with others."""
    chunk, other = to_chunk(delta), to_chunk(delta)
    kwargs = {"reasoning_content": delta.thought} if delta.thought else {}
    message = AIMessageChunk(
        content=delta.text,
        additional_kwargs=kwargs,
        response_metadata={"model_provider": "vllm_mlx"},
    )
    assert chunk == ChatGenerationChunk(message=message)
    assert chunk.text == delta.text
    for name, value in vars(chunk.message).items():
        if isinstance(value, list | dict):
            assert value is not getattr(other.message, name), name


def test_a_chunk_made_fast_can_be_used_like_any_other():
    """It takes new attributes, copies, pickles and merges."""
    chunk = to_chunk(Delta("one"))
    chunk.message.id, chunk.message.note = "run-1", "mine"
    for same in (pickle.loads(pickle.dumps(chunk)), copy.deepcopy(chunk)):
        assert same == chunk
        assert same.message.note == "mine"
    assert not hasattr(to_chunk(Delta("two")).message, "note")
    assert (chunk + to_chunk(Delta("two"))).text == "onetwo"
    unset = to_chunk(Delta("three")).message.model_dump(exclude_unset=True)
    assert unset["content"] == "three"
