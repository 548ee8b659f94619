"""An empty home, and servers that say what a test wants."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Script

from langchain_car_vllm import ChatVllmMlx

_FOREIGN = ("CAR_", "UV_", "VLLM_MLX_", "HF_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_")
Serve = Callable[..., tuple[ChatVllmMlx, Server]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME, with no variable of the caller's that could reach a test."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a factory: a script in, a model and its server out."""
    with ExitStack() as stack:

        def make(script: Script, **settings: object) -> tuple[ChatVllmMlx, Server]:
            server = stack.enter_context(Server(Dialect("m", script=script)))
            return ChatVllmMlx(model="m", base_url=server.base_url, **settings), server

        yield make
