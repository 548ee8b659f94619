"""Failures reach the user as typed errors with the server's own text."""

import asyncio
import dataclasses
import pickle
import socket
from types import SimpleNamespace
from typing import Any

import httpcore2
import pytest
from fakes.reply import Reply
from langchain.agents.middleware import ModelRequest, ModelRetryMiddleware
from langchain_core import exceptions as core

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.connection import Attached, Replay
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import (
    CarVllmError,
    RequestError,
    ServerCrashedError,
    ServerStoppedError,
)
from langchain_car_vllm.wire import errors
from langchain_car_vllm.wire.transport import timeouts
from langchain_car_vllm.wire.transport.error_mapping import map_errors

ENDPOINT = Endpoint("http://127.0.0.1:9/v1", None, "m", managed=True)


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (400, core.ModelInvalidRequestError, False),
        (401, core.ModelAuthenticationError, False),
        (403, core.ModelPermissionDeniedError, False),
        (404, core.ModelNotFoundError, False),
        (422, core.ModelInvalidRequestError, False),
        (429, core.ModelRateLimitError, True),
        (500, core.ModelAPIError, True),
        (504, core.ModelTimeoutError, True),
    ],
)
def test_the_servers_own_text_and_langchains_class(serve, status, expected, retryable):
    """The SDK drops FastAPI's `detail`; here it is the message, under the class that fits."""
    model, dialect = serve(Reply(status=status, detail="because of the moon"), max_retries=0)
    for call in (
        lambda: model.invoke("hi"),
        lambda: list(model.stream("hi")),
        lambda: asyncio.run(model.ainvoke("hi")),
    ):
        with pytest.raises(expected, match="because of the moon") as caught:
            call()
        assert isinstance(caught.value, RequestError)
        assert caught.value.is_retryable is retryable
    assert len(dialect.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=400),
        Reply(status=500),
        Reply(frame=(500, "broken")),
        Reply("one two", break_after=1),
    ],
)
def test_no_error_is_its_own_cause(serve, reply):
    """What follows an error's causes comes to an end, at what the server did."""
    model, _ = serve(reply, max_retries=0)
    for call in (
        lambda: model.invoke("hi"),
        lambda: list(model.stream("hi")),
        lambda: asyncio.run(model.ainvoke("hi")),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        causes: list[BaseException | None] = [caught.value]
        while causes[-1] is not None:
            assert causes[-1].__cause__ not in causes
            causes.append(causes[-1].__cause__)
        assert reply.frame or isinstance(causes[1], Exception)


def test_a_schema_violation_names_the_field(serve):
    """FastAPI's list of complaints becomes one sentence."""
    model, _ = serve()
    with pytest.raises(core.ModelInvalidRequestError, match="min_p: Input should be"):
        model.invoke("hi", extra_body={"min_p": "a lot"})


def test_a_detail_that_is_an_object_gives_its_message(serve):
    """The server's structured details carry the sentence under `message`."""
    detail = {"error": "invalid_response_format_output", "message": "not valid JSON"}
    model, _ = serve(Reply(status=422, detail=detail))
    with pytest.raises(core.ModelInvalidRequestError, match="422: not valid JSON"):
        model.invoke("hi")


def test_a_busy_server_is_asked_again_and_a_failed_one_is_not(serve):
    """Only a refusal before any work is repeated: 503 is, 500 is not."""
    replies = [Reply(status=503, detail={"message": "busy"}), Reply(text="free")]
    model, dialect = serve(lambda _: replies.pop(0))
    assert model.invoke("hi").content == "free"
    assert len(dialect.requests) == 2
    model, dialect = serve(Reply(status=500, detail="Internal Server Error"))
    with pytest.raises(core.ModelAPIError):
        model.invoke("hi")
    assert len(dialect.requests) == 1


def test_refusals_are_borne_as_often_as_max_retries(serve):
    """After `max_retries` the refusal reaches the user."""
    model, dialect = serve(Reply(status=429, detail="slow down"), max_retries=1)
    with pytest.raises(core.ModelRateLimitError, match="slow down"):
        asyncio.run(model.ainvoke("hi"))
    assert len(dialect.requests) == 2


@pytest.mark.parametrize("way", ["stream", "invoke"])
def test_an_error_frame_in_a_stream_is_an_error(serve, way):
    """A stream that fails after its status 200 raises what the frame says."""
    reply = Reply(text="one two", frame=(500, "Internal server error"))
    model, _ = serve(reply, dialect={"engine": "simple"})
    with pytest.raises(core.ModelAPIError, match="Internal server error"):
        list(model.stream("hi")) if way == "stream" else model.invoke("hi")


def test_an_error_finish_of_older_servers_is_an_error(serve):
    """Up to 0.5.0 a failed engine answered 200 with `finish_reason: "error"`."""
    model, _ = serve(Reply(finish="error"))
    with pytest.raises(core.ModelAPIError, match="engine failed"):
        model.invoke("hi")


def test_a_stream_that_ends_without_an_end_is_an_error(serve):
    """What came until then was passed on; the missing end is said."""
    model, _ = serve(Reply(text="one two", endless=True))
    seen = []
    with pytest.raises(errors.IncompleteAnswerError) as caught:
        seen.extend(chunk.content for chunk in model.stream("hi"))
    assert seen == ["one ", "two"]
    assert caught.value.is_retryable


@pytest.mark.parametrize("way", ["stream", "invoke", "astream"])
def test_a_connection_that_breaks_is_a_connection_error(serve, way):
    """A connection closed in the middle is told apart from an answer."""
    model, _ = serve(Reply(text="one two three", break_after=1))
    calls = {
        "stream": lambda: list(model.stream("hi")),
        "invoke": lambda: model.invoke("hi"),
        "astream": lambda: asyncio.run(model.ainvoke("hi", stream=True)),
    }
    with pytest.raises(core.ModelConnectionError):
        calls[way]()


def test_nobody_listening_is_a_connection_error_that_names_the_address():
    """Connection refused says where nobody was."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with pytest.raises(errors.ConnectionFailedError, match=url) as caught:
            ChatVllmMlx(model="m", base_url=url).invoke("hi")
    assert caught.value.refused


@pytest.mark.parametrize(
    ("managed", "timeout", "is_replayed"),
    [(True, None, True), (True, 60.0, True), (True, 5.0, False), (False, 60.0, False)],
)
def test_a_connection_that_times_out_is_that_of_a_dead_server(
    managed: bool, timeout: float | None, is_replayed: bool
):
    """On a Mac nobody refuses it: it counts as refused where the time was not the user's own."""
    endpoint = dataclasses.replace(ENDPOINT, managed=managed)
    kind = errors.ConnectionFailedError if is_replayed else errors.RequestTimeoutError
    with pytest.raises(kind) as caught, map_errors(endpoint, timeout, sent=dict):
        raise httpcore2.ConnectTimeout("timed out")
    assert getattr(caught.value, "refused", False) is is_replayed


@pytest.mark.parametrize("way", ["stream", "invoke", "ainvoke"])
def test_timeout_is_sent_along_and_enforced_here(serve, way):
    """A server that falls silent is given up after `timeout`."""
    model, dialect = serve(Reply(text="one two", pause=3), timeout=0.3)
    calls = {
        "stream": lambda: list(model.stream("hi")),
        "invoke": lambda: model.invoke("hi"),
        "ainvoke": lambda: asyncio.run(model.ainvoke("hi")),
    }
    with pytest.raises(core.ModelTimeoutError, match=r"0\.3 s"):
        calls[way]()
    assert dialect.requests[0]["timeout"] > 0.3  # ours is to be up before


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_text_that_is_held_back_is_no_pause_of_the_servers(serve, way):
    """Each pause is short, all of them last longer, and nothing goes out before the end."""
    reply = Reply(text='{"name": "other", ' + '"x", ' * 40, pause=0.1)
    model, _ = serve(reply, timeout=3)
    tool = {"title": "f", "description": "d", "type": "object", "properties": {}}
    bound = model.bind_tools([tool])

    async def asked() -> list[Any]:
        return [chunk async for chunk in bound.astream("hi")]

    chunks = list(bound.stream("hi")) if way == "stream" else asyncio.run(asked())
    assert "".join(chunk.text for chunk in chunks) == reply.text


def test_the_users_own_time_is_no_pause_of_the_servers(monkeypatch):
    """Whoever takes long over a chunk does not lose the stream to a heartbeat."""
    now = SimpleNamespace(monotonic=lambda: float(now.seconds), seconds=0)
    monkeypatch.setattr(timeouts, "time", now)
    pause = timeouts.Clock(ENDPOINT, 2, total=False)
    pause.check(1)
    now.seconds = 3
    pause.resume()
    pause.check(1)
    now.seconds = 6
    with pytest.raises(core.ModelTimeoutError):
        pause.check(1)


def test_timeout_is_total_for_an_answer_and_a_pause_for_a_stream(serve):
    """A stream may take longer than `timeout` as long as it moves; a collected answer may not."""
    reply = Reply(text="a b c d e f g h", pause=0.5)
    model, _ = serve(reply, dialect={"engine": "simple"}, timeout=3)
    assert len(list(model.stream("hi"))) == 9
    with pytest.raises(core.ModelTimeoutError):
        model.invoke("hi", stop=["zzz"])


@pytest.mark.parametrize(
    "raw",
    [
        b"data: nonsense\n\n",
        b"data: 5\n\n",
        b'data: {"choices": [{"delta": 7}]}\n\n',
        b"\xff\xfe\n",
        b"data: " + b"[" * 200_000 + b"\n\n",
        b'data: {"choices": [], "usage": {"prompt_tokens": Infinity}}\n\n',
    ],
    ids=lambda raw: raw[:12],
)
@pytest.mark.parametrize("way", ["stream", "invoke"])
def test_bytes_that_are_no_answer_are_a_typed_error(serve, raw, way):
    """Whatever comes back, it is never a bare KeyError."""
    model, _ = serve(Reply(raw=raw))
    with pytest.raises(CarVllmError):
        list(model.stream("hi")) if way == "stream" else model.invoke("hi")


def test_an_answer_that_cannot_be_unpacked_is_a_typed_error(serve):
    """A proxy before an endpoint may damage what it compresses."""
    model, _ = serve(Reply(raw=b"no gzip", headers={"content-encoding": "gzip"}))
    with pytest.raises(core.ModelAPIError, match="cannot be read"):
        list(model.stream("hi"))


def test_every_error_survives_pickling():
    """Errors cross process borders with all they carry."""
    for cls in (errors.InvalidRequestError, errors.ServerFailedError, errors.RequestTimeoutError):
        error = pickle.loads(pickle.dumps(cls("what", hint="do", status=4)))
        assert (str(error), error.status) == (str(cls("what", hint="do", status=4)), 4)
    found = pickle.loads(pickle.dumps(errors.PromptTooLongError(9, 5)))
    assert (found.tokens, found.limit) == (9, 5)


@pytest.mark.parametrize(
    ("given", "attempts"), [({"model": "vllm-mlx/no-such-model:4bit"}, 1), ({}, 3)]
)
def test_the_retry_middleware_repeats_only_what_may_pass(serve, given, attempts):
    """It asks nobody but a `ModelError`, and repeats whatever else is raised."""
    model, _ = serve(Reply(status=500, detail="for now"), max_retries=0)
    if given:
        model = ChatVllmMlx(model="vllm-mlx/gemma-4-e4b-it")
    tried = []

    def answer(_: Any) -> Any:
        tried.append(model.model)
        return model.invoke("hi", **given)

    middleware = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, on_failure="error")
    with pytest.raises(CarVllmError):
        middleware.wrap_model_call(ModelRequest(model=model, messages=[]), answer)
    assert len(tried) == attempts


class TestReplay:
    """A call is repeated once, after a crash, and only if nothing was seen."""

    broken = errors.ConnectionFailedError("gone")

    def test_a_crash_is_replayed_once(self):
        """The second crash is told."""
        replay, crash = Replay(), ServerCrashedError("crashed")
        replay.decide(self.broken, crash, Attached(ENDPOINT))
        with pytest.raises(ServerCrashedError):
            replay.decide(self.broken, crash, Attached(ENDPOINT))

    def test_nothing_is_replayed_once_a_part_was_seen(self):
        """A stream that had begun ends with the error."""
        replay = Replay()
        replay.seen = True
        with pytest.raises(ServerCrashedError):
            replay.decide(self.broken, ServerCrashedError("crashed"), Attached(ENDPOINT))

    def test_a_stop_is_not_replayed(self):
        """A user's stop ends the requests under way."""
        with pytest.raises(ServerStoppedError):
            Replay().decide(self.broken, ServerStoppedError("stopped"), Attached(ENDPOINT))

    def test_a_refused_connection_is_replayed_only_for_a_server_of_ours(self):
        """The lease finds the new port; an endpoint of somebody else's has none."""
        refused = errors.ConnectionFailedError("refused")
        refused.refused = True
        Replay().decide(refused, None, Attached(ENDPOINT))
        other = Endpoint("http://127.0.0.1:9/v1", None, "m")
        with pytest.raises(errors.ConnectionFailedError):
            Replay().decide(refused, None, Attached(other))

    def test_a_broken_connection_to_a_healthy_server_is_told(self):
        """The server may still be working on it."""
        with pytest.raises(errors.ConnectionFailedError):
            Replay().decide(self.broken, None, Attached(ENDPOINT))
