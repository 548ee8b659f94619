"""A served model to talk to, without any lifecycle."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply, Script, helpful

from langchain_car_vllm import ChatVllmMlx

Serve = Callable[..., tuple[ChatVllmMlx, Dialect]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves a script, or one reply, and gives a model for it."""
    with ExitStack() as stack:

        def start(
            script: Script | Reply = helpful, dialect: dict[str, Any] | None = None, **fields: Any
        ) -> tuple[ChatVllmMlx, Dialect]:
            said = (lambda _: script) if isinstance(script, Reply) else script
            spoken = Dialect(**{"served_model": "m", "script": said, **(dialect or {})})
            server = stack.enter_context(Server(spoken))
            return ChatVllmMlx(**{"model": "m", "base_url": server.base_url, **fields}), spoken

        yield start
