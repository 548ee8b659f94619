"""LangChain's own suites, against the fake server on loopback."""

import importlib
from collections.abc import Iterator

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server

_KEYS = {
    ("langchain_car_vllm", "chat_models", "ChatVllmMlx"),
}


@pytest.fixture(autouse=True)
def _loadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enter our classes into core's fixed list of loadable ones, as its `test_serdes` demands."""
    module = importlib.import_module("langchain_core.load.load")
    for key in _KEYS:
        monkeypatch.setitem(module.ALL_SERIALIZABLE_MAPPINGS, key, key)
    module._default_class_paths_cache.clear()
    yield
    module._default_class_paths_cache.clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A served model that answers like a capable one, found through the environment."""
    with Server(Dialect("standard", multimodal=True)) as running:
        monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", running.base_url)
        yield running
