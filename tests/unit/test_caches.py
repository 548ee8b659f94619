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
