"""Endpoints that somebody else runs: who they are, what their failures mean, what they cost."""

import asyncio
import errno
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from langchain_core.exceptions import ContextOverflowError, ModelRateLimitError
from pydantic import BaseModel

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import (
    AnswerError,
    AuthenticationError,
    ConnectionFailedError,
    InvalidRequestError,
    ModelMissingError,
    PromptTooLongError,
    RateLimitError,
    ServerFailedError,
    error_for_status,
)
from langchain_car_vllm.wire.transport import remote
from langchain_car_vllm.wire.transport.remote import hint_for_connection


class Gateway(Dialect):
    """LiteLLM's proxy: it hides who stands behind it, and its `/health` asks every model."""

    def respond(self, method, path, headers, body):
        response = super().respond(method, path, headers, body)
        if path == "/v1/models":
            response.body = response.body.replace(b"vllm-mlx", b"openai")
        return response


def paths_of(dialect: Dialect, name: str) -> int:
    return sum(path == name for path in dialect.paths)


def test_a_gateway_is_not_asked_for_its_health():
    """It costs a request to every model behind it; who it is, is asked once."""
    dialect = Gateway(script=lambda _: Reply(text="yes"))
    with Server(dialect) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        for _ in range(3):
            assert model.invoke("hi").text == "yes"
        assert asyncio.run(model.ainvoke("hi")).text == "yes"
    assert paths_of(dialect, "/health") == 0
    assert paths_of(dialect, "/v1/models") == 1


def test_vllm_mlx_is_known_by_its_models(serve):
    """Then `/health` tells the engine, once a minute."""
    model, dialect = serve(Reply(text="yes"), dialect={"engine": "simple"})
    for _ in range(3):
        model.invoke("hi")
    assert paths_of(dialect, "/health") == paths_of(dialect, "/v1/models") == 1
    assert dialect.requests[0]["stream"] is True


def test_an_address_that_does_not_tell_is_not_asked_again():
    """Each call would take two seconds more."""
    asked = []

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            time.sleep(30)

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            said = {"message": {"content": "yes"}, "finish_reason": "stop", "index": 0}
            body = json.dumps({"id": "1", "model": "m", "choices": [said]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as http:
        http.daemon_threads = True
        http.block_on_close = False
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        for _ in range(3):
            assert ChatVllmMlx(model="m", base_url=url, timeout=60).invoke("hi").text == "yes"
        http.shutdown()
    assert [path for path in asked if path != "/v1/status"] == ["/v1/models"]


class Stalling(Dialect):
    """A server that is too busy to say who it is, as long as a test has it so."""

    stalls = None

    def respond(self, method, path, headers, body):
        response = super().respond(method, path, headers, body)
        if path == self.stalls:
            response.status, response.body = 503, b"{}"
        return response


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_what_an_address_told_stands_while_it_is_too_busy_to_tell(path, monkeypatch):
    """It was taken for an unknown server for a minute, whose quirks nobody minds."""
    dialect = Stalling("m", engine="simple")
    with Server(dialect) as server:
        endpoint = Endpoint(base_url=server.base_url, api_key=None, served_model="m")
        monkeypatch.setattr(remote, "_FRESH_SECONDS", -1.0)  # each look is a minute later
        engines = []
        for dialect.stalls in (path, None, path, None):
            engines.append(remote.describe(endpoint).engine)
    assert engines == [None, "simple", "simple", "simple"]


def test_who_is_refused_hides_no_server_from_others():
    """Another key may be told more, at once."""
    with Server(Dialect("m", "right", engine="simple")) as server:
        engines = [
            remote.describe(Endpoint(server.base_url, key, "m")).engine
            for key in ("wrong", "right", None)
        ]
    assert engines == [None, "simple", None]


class Moon(BaseModel):
    name: str


def test_the_engine_of_the_constructor_stands_for_what_a_gateway_hides():
    """The batched engine forgets the grammar without a bias."""
    dialect = Gateway()
    with Server(dialect) as server:
        for engine in ("batched", "auto"):
            model = ChatVllmMlx(model="m", base_url=server.base_url, engine=engine)
            model.with_structured_output(Moon).invoke("name one")
    assert ["logit_bias" in body for body in dialect.requests] == [True, False]


def test_a_grammar_that_a_gateways_engine_forgot_is_asked_for_once_more():
    """The 422 tells that the engine batches; the bias helps there."""
    detail = {"error": {"type": "invalid_response_format_output", "message": "not JSON"}}

    def script(body):
        if "logit_bias" not in body:
            return Reply(status=422, detail=detail)
        return Reply(text='{"name": "Io"}')

    dialect = Gateway(script=script)
    with Server(dialect) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url)
        for _ in range(2):
            assert model.with_structured_output(Moon).invoke("name one") == Moon(name="Io")
    assert len(dialect.requests) <= 4


TOO_LONG = [
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
    "litellm.ContextWindowExceededError: litellm.BadRequestError: too many",
    "the request exceeds the available context size. try increasing the context size",
    "request (9000 tokens) exceeds the available context size (4096 tokens)",
    "{'code': 'context_length_exceeded'}",
    "The prompt is too long: 9000, model maximum context length: 4096",
    "input length exceeds the context length",
    "prompt is too long: 9000 tokens > 8192 maximum",
    "Requested tokens (9000) exceed context window of 4096",
    "Please reduce the length of the messages or completion.",
    "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
    "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000 `inputs` tokens",
    "`inputs` must have less than 4095 tokens. Given: 9000",
    "This model's maximum prompt length is 8192 but the request contains 9000 tokens.",
    "prompt length (9000) exceeds max_input_len (8192)",
    "too many tokens: total number of tokens in the request cannot exceed 4081",
    "input length and `max_tokens` exceed context limit: 9000 + 20 > 8192",
    "Your input exceeds the context window of this model.",
    "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
    "prompt too long; exceeded max context length by 17 tokens",
    "Invalid request: Your request exceeded model token limit: 262144 (requested: 291351)",
    "The prompt (total length 9000) is too long to fit into the model (context length 4096).",
    "Prompt has 9,000 tokens, but the configured context size is 4,096 tokens",
    "prompt token count of 9000 exceeds the limit of 8192",
    "Range of input length should be [1, 30720]",
    "Input length 40000 exceeds the maximum length 32768",
    "Prompt length 9000 is greater than max_seq_len 4096",
]


@pytest.mark.parametrize("text", TOO_LONG)
@pytest.mark.parametrize("code", [400, 500, "400"])
def test_a_prompt_that_is_too_long_is_told_as_such(text: str, code: object):
    """In the words of LiteLLM, OpenAI, llama.cpp, vLLM and others; a summary helps, no retry."""
    error = error_for_status(code, text)
    assert isinstance(error, PromptTooLongError)
    assert isinstance(error, ContextOverflowError)
    assert not error.is_retryable
    assert text in str(error)


@pytest.mark.parametrize(
    ("frame", "cls"),
    [
        ({"code": "429", "message": "slow down"}, RateLimitError),
        ({"code": 429, "message": "slow down"}, ModelRateLimitError),
        ({"code": "rate_limit_exceeded", "type": "rate_limit_error", "message": "x"}, AnswerError),
        ({"type": "rate_limit_error", "message": "slow down"}, RateLimitError),
        ({"code": "401", "message": "who"}, AuthenticationError),
        ({"code": "nonsense", "message": "x"}, ServerFailedError),
        ({"code": 10**400, "message": "x"}, ServerFailedError),
        ({"code": [1], "message": "x"}, ServerFailedError),
        ({"code": None, "message": None}, ServerFailedError),
    ],
)
def test_the_code_of_an_error_frame_may_be_text(serve, frame, cls):
    """Gateways send it so; what is no status is a failure of the server."""
    raw = b"data: " + json.dumps({"error": frame}).encode() + b"\n\ndata: [DONE]\n\n"
    model, _ = serve(Reply(raw=raw), max_retries=0)
    with pytest.raises(cls):
        list(model.stream("hi"))


def test_a_forgotten_v1_is_told(serve):
    """The model's name was right; the path was not."""
    model, _ = serve(Reply(text="yes"))
    for url, hint in (
        (model.base_url.removesuffix("/v1"), "did you mean `http://127.0.0.1:.*/v1`"),
        (model.base_url.removesuffix("v1") + "V1", "did you mean `http://127.0.0.1:[0-9]+/v1`"),
        (model.base_url.removesuffix("v1") + "api", "did you mean `http://127.0.0.1:[0-9]+/v1`"),
        (f"{model.base_url}/chat/completions", "`http://127.0.0.1:[0-9]+/v1`"),
        (f"{model.base_url}/v1", "root of an OpenAI API"),
    ):
        with pytest.raises(InvalidRequestError, match=hint) as caught:
            ChatVllmMlx(model="m", base_url=url).invoke("hi")
        assert not isinstance(caught.value, ModelMissingError)


def test_more_tokens_than_the_server_gives_are_told_with_the_cure(serve):
    """Its own 400 names no flag."""
    model, _ = serve(Reply(text="yes"))
    with pytest.raises(InvalidRequestError, match="exceeds server limit") as caught:
        model.invoke("hi", max_tokens=40_000)
    assert "--max-request-tokens" in (caught.value.hint or "")


def test_a_404_for_something_else_is_not_a_missing_model():
    """mlx_lm.server answers 404 for everything."""
    error = error_for_status(404, "Only 'text' content type is supported.")
    assert type(error) is InvalidRequestError
    named = error_for_status(404, "The model `x` does not exist.")
    assert isinstance(named, ModelMissingError)


@pytest.mark.parametrize(
    "text",
    [
        "/chat/completions: Invalid model name passed in model=x. Call `/v1/models` to view them",
        "could not find real modelID for x",
        "model 'x' not found",
        "x is not a valid model ID",
        "Model Not Exist",
        "Invalid model: x",
    ],
)
def test_a_bad_request_for_a_model_that_is_not_there(text: str):
    """Gateways call it that, and what may help is another name."""
    error = error_for_status(400, text)
    assert isinstance(error, ModelMissingError)
    assert not error.is_retryable
    assert "name" in (error.hint or "")


def test_a_bad_request_for_a_file_that_is_not_there():
    """It is named like a model, and is none."""
    assert type(error_for_status(400, "image of the model 'x' not found")) is InvalidRequestError


def test_a_wrong_key_for_a_gateway_without_a_database():
    """LiteLLM knows its master key alone then, and calls any other a bad request."""
    error = error_for_status(400, "No connected db.")
    assert isinstance(error, AuthenticationError)
    assert not error.is_retryable
    assert "api_key" in (error.hint or "")


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_web_page_is_told_as_such(serve, way: str):
    """A log-in page, or the wrong address; `timeout` has nothing to do with it."""
    page = b"<!DOCTYPE html><html><head><title>Log in</title></head></html>"

    class Pages(Dialect):
        def respond(self, method, path, headers, body):
            response = super().respond(method, path, headers, body)
            if method == "POST":
                response.body, response.content_type = page, "Text/HTML; charset=utf-8"
                response.status = self.code
            return response

    for code, text in ((200, "web page"), (502, "a web page: Log in")):
        dialect = Pages()
        dialect.code = code
        with Server(dialect) as server:
            model = ChatVllmMlx(model="m", base_url=server.base_url)
            with pytest.raises(ServerFailedError, match=text):
                list(model.stream("hi")) if way == "stream" else model.invoke("hi")


def test_a_refused_connection_names_the_address():
    """Nobody listens: the message says where, and not `None`."""
    model = ChatVllmMlx(model="m", base_url="http://user:secret@127.0.0.1:9/v1")
    with pytest.raises(ConnectionFailedError, match="refused") as caught:
        model.invoke("hi")
    assert "secret" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "way",
    [
        lambda **fields: ChatVllmMlx(**fields).invoke("hi"),
        lambda **fields: asyncio.run(ChatVllmMlx(**fields).ainvoke("hi")),
        lambda **fields: ChatVllmMlx(**fields, validate_model_on_init=True),
    ],
)
def test_a_neighbour_that_a_mac_keeps_a_program_from_is_told(monkeypatch, way):
    """What may not use the local network hears that there is no route; loopback is not meant."""

    def deny(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(socket.socket, "connect", deny)
    with pytest.raises(ConnectionFailedError, match="192") as caught:
        way(model="m", base_url="http://192.0.2.1:8000/v1")
    assert caught.value.hint == hint_for_connection(caught.value, "http://x")
    told = hint_for_connection(caught.value, "http://x", "darwin")
    assert "Local Network" in told
    assert "base_url" in told  # there is no route to a machine that is switched off, too
    assert "base_url" in hint_for_connection(caught.value, "http://x", "linux")
    assert "base_url" in hint_for_connection(ConnectionRefusedError(), "http://x", "darwin")


def test_escape_sequences_of_a_server_are_shown_as_text(serve):
    """OSC 52 would write the clipboard."""
    model, _ = serve(Reply(status=400, detail="\x1b]52;c;aGk=\x07 oh"))
    with pytest.raises(InvalidRequestError) as caught:
        model.invoke("hi")
    assert "\x1b" not in str(caught.value)
    assert r"\x1b]52" in str(caught.value)
