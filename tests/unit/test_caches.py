"""LangChain's caches never give an answer that was made with other settings."""

import asyncio
import copy
import gc
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool
from pydantic import BaseModel, create_model

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.errors import InvalidRequestError, StructuredOutputError


def assigned(model: ChatVllmMlx) -> ChatVllmMlx:
    model.temperature = 0.5
    return model


CHANGES: dict[str, Callable[[ChatVllmMlx], ChatVllmMlx]] = {
    "model_copy": lambda model: model.model_copy(update={"temperature": 0.5}),
    "deep model_copy": lambda model: model.model_copy(update={"temperature": 0.5}, deep=True),
    "copy": lambda model: assigned(copy.copy(model)),
    "deepcopy": lambda model: assigned(copy.deepcopy(model)),
    "assignment": assigned,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_misses_the_cache(change: str, socket_enabled: None):
    """However the setting was changed after a call that was cached; what is the same still hits."""
    with Server(Dialect("m", script=lambda body: Reply(str(body.get("temperature"))))) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url, cache=InMemoryCache())
        assert [model.invoke("hi").text, model.invoke("hi").text] == ["None", "None"]
        assert copy.copy(model).invoke("hi").text == "None"
        assert len(server.dialect.requests) == 1
        assert CHANGES[change](model).invoke("hi").text == "0.5"


IN_PLACE: dict[str, tuple[dict[str, Any], Callable[[ChatVllmMlx], object]]] = {
    "model_kwargs": ({"top_p": 0.1}, lambda model: model.model_kwargs.update(top_p=0.5)),
    "extra_body": ({"a": {"b": 1}}, lambda model: model.extra_body["a"].update(b=2)),
    "stop": (["one"], lambda model: model.stop.append("two")),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_so_does_one_that_was_changed_in_place(name: str, socket_enabled: None):
    """Nobody tells the model of that."""
    value, change = IN_PLACE[name]
    with Server(Dialect("m")) as server:
        model = ChatVllmMlx("m", base_url=server.base_url, cache=InMemoryCache(), **{name: value})
        for number in range(2):
            model.invoke("hi")
            model.invoke("hi")
            assert len(server.dialect.requests) == number + 1
            change(model)


HIDDEN = {
    "api_key": ("hush-1", "hush-2"),
    "default_headers": ({"x-tenant": "hush-1"}, {"x-tenant": "hush-2"}),
    "server_env": ({"A": "hush-1"}, {"A": "hush-2"}),
    "extra_body": ({"token": "hush-1"}, {"token": "hush-2"}),
    "server_args": (["--token", "hush-1"], ["--token", "hush-2"]),
    "base_url": ("http://u:hush-1@", "http://u:hush-2@"),
    "model_kwargs": ({"extra_headers": {"x": "hush-1"}}, {"extra_headers": {"x": "hush-2"}}),
}


@pytest.mark.filterwarnings("ignore:with `base_url`")
@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_not_shown_tells_answers_apart_all_the_same(name: str, socket_enabled: None):
    """An answer that one tenant of a gateway got is no other's, and no cache keeps a secret."""
    cache = InMemoryCache()
    with Server(Dialect("m", script=lambda body: Reply("hello"))) as server:
        for number, value in enumerate(("", *HIDDEN[name])):
            fields = {"base_url": server.base_url} | ({name: value} if value else {})
            if name == "base_url" and value:
                fields[name] = server.base_url.replace("http://", value)
            model = ChatVllmMlx(model="m", cache=cache, **fields)
            assert [model.invoke("hi").text for _ in range(2)] == ["hello"] * 2
            assert len(server.dialect.requests) == number + 1
        assert "hush" not in str(list(cache._cache))


@pytest.mark.parametrize("name", ["extra_headers", "extra_body"])
def test_so_does_what_is_not_shown_of_a_call(name: str, socket_enabled: None):
    """Bound or given in the call."""
    cache = InMemoryCache()
    with Server(Dialect("m", script=lambda body: Reply("hello"))) as server:
        model = ChatVllmMlx(model="m", cache=cache, base_url=server.base_url)
        for secret in ("hush-1", "hush-2"):
            model.invoke("hi", **{name: {"token": secret}})
            model.bind(**{name: {"token": secret}}).invoke("hi")
        assert len(server.dialect.requests) == 2
        assert "hush" not in str(list(cache._cache))


def described(text: str) -> Callable[[str], str]:
    def tool(x: str) -> str: ...

    tool.__doc__ = text
    return tool


def moon(**fields: Any) -> type[BaseModel]:
    return create_model("Moon", **fields)


class Described(BaseTool):
    """The same with a description of its own."""

    name: str = "tool"
    description: str = ""

    def _run(self) -> None: ...


PARAMETERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "function": lambda text: {"tools": [described(text)]},
    "tool": lambda text: {"tools": [Described(description=text)]},
    "class of a tool": lambda text: {"tools": [moon(**{text: (str, ...)})]},
    "class of the answer": lambda text: {"response_format": moon(**{text: (str, ...)})},
}


@pytest.mark.parametrize("is_bound", [True, False])
@pytest.mark.parametrize("name", PARAMETERS)
def test_objects_of_one_name_are_told_apart(name: str, is_bound: bool, socket_enabled: None):
    """By what they say: a later one may lie where a former one lay. What says the same hits."""
    cache = InMemoryCache()
    with Server(Dialect("m", script=lambda body: Reply("{}"))) as server:
        for text in ("one", "one", "another", "one"):
            given = PARAMETERS[name](text)
            always = {} if is_bound else {"model_kwargs": given}
            model = ChatVllmMlx(model="m", cache=cache, base_url=server.base_url, **always)
            with suppress(StructuredOutputError):
                model.invoke("hi", **(given if is_bound else {}))
            gc.collect()
        assert len(server.dialect.requests) == 2
        assert " at 0x" not in str(list(cache._cache))


def test_a_schema_with_tools_hits_its_own_entry(socket_enabled: None):
    """Each method of structured output, and each schema, has an entry of its own."""
    with Server(Dialect("m")) as server:
        model = ChatVllmMlx(model="m", cache=InMemoryCache(), base_url=server.base_url)
        ways: list[tuple[Any, Any]] = [
            (schema, method)
            for schema in (moon(a=(str, ...)), moon(b=(int, ...)))
            for method in ("json_schema", "function_calling", "json_mode")
        ]
        for _ in range(2):
            for schema, method in ways:
                chain = model.with_structured_output(schema, method=method)
                assert isinstance(chain.invoke("hi"), schema)
        sent = [str(body) for body in server.dialect.requests]
        # `json_mode` with a schema is `json_schema`.
        assert len(sent) == len(set(sent)) == 4


WAYS: dict[str, Callable[[ChatVllmMlx, Any], object]] = {
    "invoke": lambda model, content: model.invoke([HumanMessage(content)]),
    "ainvoke": lambda model, content: asyncio.run(model.ainvoke([HumanMessage(content)])),
    "generate": lambda model, content: model.generate([[HumanMessage(content)]]),
}
IMAGES = [struct.pack(">I", number) for number in range(2)]


def png(data: bytes) -> bytes:
    """Return a picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", compress(b"\0" + data[-3:]))
    return b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b"")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["url", "path", "image_url"])
def test_a_file_that_was_written_anew_is_looked_at_again(
    form: str, way: str, tmp_path: Path, socket_enabled: None
):
    """As a camera does with its picture; the same file hits."""
    path = tmp_path / "frame.png"
    inner: Any = {"url": path} if form == "image_url" else path
    kind = "image_url" if form == "image_url" else "image"
    content = [{"type": "text", "text": "?"}, {"type": kind, form: inner}]
    with Server(Dialect("m", multimodal=True)) as server:
        model = ChatVllmMlx(model="m", cache=InMemoryCache(), base_url=server.base_url)
        for number in range(2):
            scratch = path.with_suffix(".new")
            scratch.write_bytes(png(IMAGES[number]))
            scratch.replace(path)
            for _ in range(2):
                WAYS[way](model, content)
            assert len(server.dialect.requests) == number + 1


def test_memory_that_was_written_anew_is_looked_at_again(socket_enabled: None):
    """A view shows nothing of what it views."""
    buffer = bytearray(png(IMAGES[0]))
    content: Any = [{"type": "image", "data": memoryview(buffer)}]
    with Server(Dialect("m", multimodal=True)) as server:
        model = ChatVllmMlx(model="m", cache=InMemoryCache(), base_url=server.base_url)
        WAYS["invoke"](model, content)
        buffer[:] = png(IMAGES[1])
        WAYS["invoke"](model, content)
        WAYS["invoke"](model, content)
        assert len(server.dialect.requests) == 2


def test_without_a_cache_no_file_is_looked_at_for_one(tmp_path: Path):
    """Whoever asks for a cache where there is none is told, files or not."""
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:1/v1", cache=True)
    with pytest.raises(ValueError, match="no cache found"):
        WAYS["invoke"](model, [{"type": "image", "path": tmp_path / "a.png"}])


KEY = """
from langchain_car_vllm import ChatVllmMlx
from pydantic import BaseModel

class Moon(BaseModel):
    names: frozenset[str] = frozenset({"a", "b", "c", "d"})

def tool(names: set[str] = {"a", "b", "c", "d"}) -> None:
    "Take names."

given = {"tools": [tool, Moon], "response_format": Moon}
for place in ({"model_kwargs": given}, {}):
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1", api_key="hush", **place)
    print(model._get_llm_string(stop={"a", "b", "c", "d"}, **({} if place else given)))
"""


def test_another_process_finds_what_this_one_kept():
    """Whatever order its sets have, and wherever its objects lie."""
    keys = {
        subprocess.run(
            [sys.executable, "-c", KEY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(keys) == 1
    assert "hush" not in str(keys)


HOLDING_ITSELF: dict[str, Any] = {}
HOLDING_ITSELF["a"] = HOLDING_ITSELF
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]
REFUSED: list[dict[str, Any]] = [
    {"model": 5},
    {"stop": DEEP},
    {"reasoning": DEEP},
    {"logprobs": DEEP},
    {"response_format": DEEP},
    {"extra_body": HOLDING_ITSELF},
    {"extra_body": {"token": HOLDING_ITSELF}},
    {"chat_template_kwargs": {"a": DEEP}},
]


@pytest.mark.parametrize("cache", [False, InMemoryCache()], ids=["no cache", "a cache"])
@pytest.mark.parametrize("given", REFUSED, ids=lambda given: next(iter(given)))
def test_what_no_call_can_take_is_refused_in_words(given: dict[str, Any], cache: Any):
    """With a cache as without: its key is made of what nobody has looked at yet."""
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1", cache=cache)
    for call in (model.invoke, lambda text, **given: asyncio.run(model.ainvoke(text, **given))):
        with pytest.raises((ConfigurationError, InvalidRequestError)):
            call("hi", **given)
