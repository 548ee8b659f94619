"""LangChain's caches never give an answer that was made with other settings."""

import copy
from collections.abc import Callable

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from langchain_core.caches import InMemoryCache

from langchain_car_vllm import ChatVllmMlx


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
