"""Secrets: in no message, dump, trace or cache key; a stranger's model takes none."""

import asyncio
import base64
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from fakes.response_format import Response
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.runnables import (
    ConfigurableField,
    RunnableBinding,
    RunnablePassthrough,
    RunnableSequence,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import RunnableConfigurableFields
from pydantic import ValidationError

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.errors import (
    CarVllmError,
    ConfigurationError,
    ServerCrashedError,
    ServerStartError,
)
from langchain_car_vllm.secrets_masking import masked_arguments
from langchain_car_vllm.serialization import init_validator
from langchain_car_vllm.support.printable import printable
from langchain_car_vllm.wire.errors import error_for_status

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is in beta"),
    # All secrets at once leave each other without effect.
    pytest.mark.filterwarnings("ignore:.*no effect"),
]
SECRETS: dict[str, Any] = {
    "api_key": "hush-key",
    "default_headers": {"x-key": "hush-header"},
    "server_env": {"TOKEN": "hush-env"},
    "extra_body": {
        "deep": [{"api_key": "hush-body"}, "https://u:hush-url@h/x?n=1&token=hush-url#a"],
        "min_tokens": 3,
    },
    "server_args": ["--hf-token", "hush-arg", "--cache-memory-mb", "64", "--auth-token=hush-arg"],
    "model_kwargs": {"extra_body": {"password": "hush-kwarg"}},
}
KEY = "hush-key-of-twenty-letters"
BASIC = base64.b64encode(f"user:{KEY}".encode()).decode()
ECHO = f"wrong key: Bearer {KEY}"
NAMES = ("ChatVllmMlx", "VllmMlxDecisions", "VllmMlxEmbeddings", "VllmMlxReranker")
# langchain-core before 1.8 knows no decisions.
MODELS = [getattr(langchain_car_vllm, n) for n in NAMES if n in langchain_car_vllm.__all__]
LOADED = [cls for cls in MODELS if cls.__name__ in NAMES[:2]]


def fields_of(cls: type) -> dict[str, Any]:
    return {name: value for name, value in SECRETS.items() if name in cls.model_fields}


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "http://[::1/v1"},
        {"base_url": "http://user:hush-user@[::1/v1"},
        {"base_url": "user:hush-user@host/v1"},
        {"base_url": "http://user:hush-user@a..b/v1"},
        {"base_url": "http://user:hush-user@host:x/v1"},
        *[{"base_url": f"http://user:hush{mark}user@host/v1"} for mark in "/#?[ \n\t"],
        {"base_url": "http://user:hush-user@host:0/v1"},
        {"base_url": "http://host/v1?api_key=hush-user"},
        {"base_url": "http://host/v1#hush-user"},
        {"base_url": "http://a..b/v1?key=hush-user"},
        {"base_url": "host/v1?key=hush-user"},
        {"model": "~nobody\0/x", "base_url": None},
        {"model": ""},
        {"keep_alive": -5},
        {"revision": "../x"},
        {"startup_timeout": -1},
        {"api_key": 5},
        {"default_headers": "hush-header"},
        {"server_env": ["hush-env"]},
        {"server_args": "hush-arg"},
        {"server_args": ["--api-key=hush-arg"]},
    ],
)
def test_no_error_of_a_setting_shows_a_secret(cls: type, wrong: dict[str, Any]):
    """An error of the whole configuration has all of it at hand, and shows none of it."""
    with pytest.raises(CarVllmError) as caught:
        cls(**{"model": "m", "base_url": "http://127.0.0.1:9/v1", **fields_of(cls), **wrong})
    assert isinstance(caught.value, ConfigurationError)
    told = f"{caught.value}{caught.value!r}{caught.value.__cause__}"
    assert not any(part in told for part in ("hush", "user@", "user'"))


@pytest.mark.parametrize("cls", MODELS)
def test_no_error_of_pydantics_own_shows_a_secret(cls: type):
    """Whoever validates a configuration in pydantic's way gets pydantic's error."""
    given = {"model": "m", "api_key": "hush", "base_url": "http://user:hush@[::1/v1"}
    for wrong in (given, {**given, "base_url": None, "server_env": {"A": ["hush"]}}):
        with pytest.raises(ValidationError) as caught:
            cls.model_validate(wrong)
        assert "hush" not in f"{caught.value}{caught.value!r}"


@pytest.mark.parametrize("value", ["hush", ["hush"], {"hush"}, b"hush"], ids=repr)
@pytest.mark.parametrize("name", ["extra_headers", "extra_body"])
def test_no_error_of_a_parameter_shows_a_secret(name: str, value: object):
    """What belongs into a dictionary may be a key, whatever was given in its place."""
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=f"{name}` must be a dictionary") as caught:
        model.invoke("hi", **{name: value})
    assert "hush" not in str(caught.value)


HOLDERS: list[dict[str, Any]] = [
    {"api_key": KEY},
    {"default_headers": {"X-Gateway-Key": KEY}},
    {"default_headers": {"X-Route": KEY}},
    {"default_headers": {"Authorization": f"Bearer {KEY}"}},
    {"default_headers": {"Cookie": f"session={KEY}; theme=dark"}},
    {"password": KEY},
    {"model_kwargs": {"extra_headers": {"x-route": KEY}}},
    {"extra_body": {"upstream": [{"api_token": {"value": KEY}}]}},
]


def _settings_of(server: Server, held: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that hold a secret; a password stands in the address."""
    found = {"base_url": server.base_url, **held}
    if password := found.pop("password", None):
        found["base_url"] = found["base_url"].replace("://", f"://user:{password}@")
    return found


def _told_by(ask: Callable[[], Any]) -> str:
    """Return all that the error of a call shows of itself and its causes."""
    with pytest.raises(CarVllmError) as caught:
        ask()
    shown = traceback.format_exception(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        shown.append(repr(vars(error)))
        error = error.__cause__
    return "".join(shown)


@pytest.mark.usefixtures("socket_enabled")
@pytest.mark.parametrize("held", HOLDERS, ids=str)
@pytest.mark.parametrize("reply", [Reply(status=401, detail=ECHO), Reply(frame=(500, ECHO))])
def test_no_error_shows_a_secret_that_the_server_quotes(reply: Reply, held: dict[str, Any]):
    """Neither the error nor its causes, of which a traceback and a tracer show all."""
    with Server(Dialect(served_model="m", script=lambda body: reply)) as server:
        model = ChatVllmMlx(model="m", max_retries=0, **_settings_of(server, held))
        asks: list[Callable[[], Any]] = [
            lambda: model.invoke("hi"),
            lambda: list(model.stream("hi")),
            lambda: asyncio.run(model.ainvoke("hi")),
        ]
        for ask in asks:
            told = _told_by(ask)
            assert "wrong key" in told
            assert KEY not in told


def _variables_of(error: BaseException) -> str:
    """Return what reports of errors show of the package's functions on the way to one."""
    shown, known = [], {id(None)}
    waiting: list[Any] = [traceback.TracebackException.from_exception(error, capture_locals=True)]
    while waiting:
        found = waiting.pop()
        if id(found) not in known:
            known.add(id(found))
            waiting += [found.__cause__, found.__context__]
            shown += [str(f.locals) for f in found.stack if "/langchain_car_vllm/" in f.filename]
    return "\n".join(shown)


class Closed(Dialect):
    """A gateway that answers no request."""

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        """Refuse a request."""
        return Response(401, b"{}")


@pytest.mark.usefixtures("socket_enabled")
@pytest.mark.parametrize("held", HOLDERS[:6], ids=str)
def test_no_report_of_an_error_shows_a_secret(held: dict[str, Any]):
    """Services that collect errors collect the variables of each function, too."""
    with Server(Closed()) as server:
        given = {"model": "m", **_settings_of(server, held)}
        asks: list[Callable[[], Any]] = [
            lambda: ChatVllmMlx(**given).invoke("hi"),
            lambda: list(ChatVllmMlx(**given).stream("hi")),
            lambda: asyncio.run(ChatVllmMlx(**given).ainvoke("hi")),
            lambda: VllmMlxEmbeddings(**given).embed_query("hi"),
        ]
        for ask in asks:
            with pytest.raises(CarVllmError) as caught:
                ask()
            assert KEY not in _variables_of(caught.value)


class Echo(Dialect):
    """A gateway that answers every request with the headers that it got."""

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        """Refuse a request."""
        return Response(401, json.dumps({"detail": f"refused: {dict(headers)}"}).encode())


@pytest.mark.usefixtures("socket_enabled")
@pytest.mark.parametrize("held", HOLDERS[:-2], ids=str)
def test_no_refusal_shows_a_secret_to_whom_asks_something_else(held: dict[str, Any]):
    """Vectors, scores and the list of models go other ways than answers."""
    documents = [Document("x"), Document("y")]
    with Server(Echo()) as server:
        given = _settings_of(server, held)
        told = [
            _told_by(lambda: VllmMlxEmbeddings("m", **given).embed_query("hi")),
            _told_by(lambda: VllmMlxReranker("m", **given).compress_documents(documents, "hi")),
            _told_by(lambda: ChatVllmMlx("m", **given, validate_model_on_init=True)),
        ]
    assert all("refused: " in text and KEY not in text for text in told)
    assert not any(BASIC in text for text in told)


@pytest.mark.usefixtures("socket_enabled")
def test_no_log_shows_a_password_of_an_address(caplog: pytest.LogCaptureFixture):
    """The transport logs what it does; user and password go along all the same."""
    caplog.set_level(logging.DEBUG)
    dialect = Dialect(served_model="m")
    with Server(dialect) as server:
        address = server.base_url.replace("://", "://user:hush%21@")
        ChatVllmMlx(model="m", base_url=address).invoke("hi")
    said = base64.b64encode(b"user:hush!").decode()
    assert dialect.headers[-1]["authorization"] == f"Basic {said}"
    assert "send_request_headers" in caplog.text
    assert "hush" not in caplog.text


@pytest.mark.parametrize("cls", MODELS)
def test_no_view_of_a_model_shows_a_secret(cls: type):
    """`repr`, `str`, dumps, `model_dump`, traces and the key of LangChain's cache."""
    model = cls(model="m", base_url="http://user:hush-user@127.0.0.1:9/v1", **fields_of(cls))
    views = [repr(model), str(model), str(model.model_dump()), model.model_dump_json()]
    views.append(dumps(model))
    if isinstance(model, ChatVllmMlx):
        views += [
            model._get_llm_string(stop=None, extra_headers={"x": "hush"}),
            json.dumps(model._get_invocation_params(), default=str),
            json.dumps(model._get_invocation_params(extra_headers={"x": "hush"}), default=str),
            str(model._identifying_params),
        ]
    for view in views:
        assert "hush" not in view
    if isinstance(model, ChatVllmMlx):
        with pytest.raises(ConfigurationError) as caught:
            model.unload()
        assert "hush" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.base_url == model.base_url
    assert copy.server_args == model.server_args


def test_what_is_no_secret_is_written_down():
    """A loaded model needs it."""
    model = ChatVllmMlx(
        model="org/name",
        extra_body={"max_tokens": 5, "min_tokens": 3, "tokenizer": "x"},
        server_args=["--max-num-tokens", "64", "--cache-memory-mb", "64"],
    )
    kwargs = dumpd(model)["kwargs"]
    assert kwargs["extra_body"] == model.extra_body
    assert kwargs["server_args"] == model.server_args


def test_what_nests_too_deeply_is_hidden_whole():
    """It cannot be looked through, and no request can hold it."""
    deep: Any = "hush"
    for _ in range(100_000):
        deep = {"x": deep}
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1", extra_body=deep)
    assert "hush" not in repr(model)
    with pytest.raises(CarVllmError, match="cannot be written as JSON"):
        model.invoke("hi")


@given(st.lists(st.text(max_size=8)))
def test_any_command_line_can_be_shown(arguments: list[str]):
    """One entry for each, whatever stands there."""
    assert len(masked_arguments(arguments)) == len(arguments)


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str):
    """Not from a log, a server or a model; lines and tabs stay."""
    errors = [
        ServerStartError(text, hint=text, log_tail=(text,)),
        ServerCrashedError("x", ending=text, log_tail=(text,)),
        error_for_status(500, text),
        ConfigurationError(text),
    ]
    for shown in (printable(text), *map(str, errors)):
        assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 126 < ord(c) < 160]


EVIL = {
    "base_url": "http://evil.example/v1",
    "server_env": {"PYTHONPATH": "/tmp/evil"},
    "server_args": ["--trust-remote-code"],
    "default_headers": {"x": "y"},
    "validate_model_on_init": True,
    "extra_body": {"x": 1},
    "fetch_media": ["localhost"],
    "model_kwargs": {"extra_headers": {"x": "y"}},
}
OPTIONS: dict[str, Any] = {
    "valid_namespaces": ["langchain_car_vllm"],
    "allowed_objects": LOADED,
    "secrets_from_env": True,
}


@pytest.mark.parametrize("name", EVIL)
def test_a_strangers_model_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    """What could take the environment's key, or run code, before the model is made."""
    monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", "hush")
    for cls in LOADED:
        written = dumpd(cls(model="org/name"))
        written["kwargs"][name] = EVIL[name]
        with pytest.raises(ValueError, match=f"may not set `?({name}|extra_headers)"):
            load(written, init_validator=init_validator, **OPTIONS)
        with pytest.raises(ValueError, match="may not set"):
            loads(json.dumps(written), init_validator=init_validator, **OPTIONS)


@pytest.mark.parametrize("name", [*EVIL, "extra_headers"])
def test_a_strangers_chain_sets_nothing_later(name: str):
    """Neither by a configuration nor by a bound parameter, once the model itself is made."""
    model = ChatVllmMlx(model="org/name")
    bound = name in ("extra_body", "extra_headers")
    chain = (
        model.bind(**{name: {"x": "y"}})
        if bound
        else model.configurable_fields(**{name: ConfigurableField(id="x")})
    )
    allowed = [*LOADED, RunnableBinding, RunnableConfigurableFields, RunnableSequence]
    options = OPTIONS | {"allowed_objects": allowed, "init_validator": init_validator}
    for written in (chain, RunnablePassthrough() | chain):
        with pytest.raises(ValueError, match=f"may not set `{name}`, nor"):
            load(dumpd(written), **(options | {"allowed_objects": [*allowed, RunnablePassthrough]}))
    harmless = model.configurable_fields(temperature=ConfigurableField(id="x")).bind(stop=["x"])
    assert load(dumpd(harmless), **options).kwargs == {"stop": ["x"]}


@pytest.mark.parametrize("name", ["extra_headers", "extra_body"])
def test_no_class_around_a_strangers_model_gives_it_more(name: str):
    """A binding is known by what it holds, not by its name."""
    model = ChatVllmMlx(model="org/name")
    path = ("langchain", "chains", "llm", "LLMChain")
    written = dumpd(RunnableBindingBase(bound=model, kwargs={name: {"x": "y"}}))
    allowed = [*LOADED, RunnableBindingBase]
    with pytest.raises(ValueError, match=f"may not set `{name}`, nor"):
        load(written, **OPTIONS | {"allowed_objects": allowed, "init_validator": init_validator})
    with pytest.raises(ValueError, match=f"may not set `{name}`, nor"):
        init_validator(path, {"llm": model, "llm_kwargs": {name: {"x": "y"}}})
    init_validator(path, {"llm": model, "llm_kwargs": {"stop": ["x"]}, name: {"x": "y"}})


@pytest.mark.parametrize("settings", [[1], "x", 5])
def test_what_is_no_setting_of_a_strangers_model_is_refused(settings: object):
    """By the error that the rest gives."""
    written = dumpd(ChatVllmMlx(model="org/name"))
    written["kwargs"]["model_kwargs"] = settings
    with pytest.raises(ValueError, match="must be a dictionary"):
        load(written, init_validator=init_validator, **OPTIONS)


def test_ones_own_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    """Also one that talks to the address of the environment."""
    model = ChatVllmMlx(model="org/name", temperature=0.5, stop=["x"])
    assert load(dumpd(model), init_validator=init_validator, **OPTIONS).temperature == 0.5
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", "http://127.0.0.1:9/v1/")
    monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", "own")
    found = load(dumpd(ChatVllmMlx(model="m")), init_validator=init_validator, **OPTIONS)
    assert found.base_url == "http://127.0.0.1:9/v1"
    assert found.api_key.get_secret_value() == "own"


def test_an_address_in_code_keeps_the_environments_key(monkeypatch: pytest.MonkeyPatch):
    """It is the developer's own choice."""
    monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", "own")
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1")
    endpoint = model._external(None)
    assert endpoint is not None
    assert endpoint.api_key == "own"
