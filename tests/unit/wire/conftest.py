"""A served model to talk to, without any lifecycle."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply, Script, helpful

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.wire.transport import remote, request_progress

Serve = Callable[..., tuple[ChatVllmMlx, Dialect]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return a function that serves a script, or one reply, and gives a model for it.

    On a machine under load, too, the server is heard out when it is asked what it is.
    """
    monkeypatch.setattr(remote, "_SECONDS", 30.0)
    with ExitStack() as stack:

        def start(
            script: Script | Reply = helpful, dialect: dict[str, Any] | None = None, **fields: Any
        ) -> tuple[ChatVllmMlx, Dialect]:
            said = (lambda _: script) if isinstance(script, Reply) else script
            spoken = Dialect(**{"served_model": "m", "script": said, **(dialect or {})})
            server = stack.enter_context(Server(spoken))
            return ChatVllmMlx(**{"model": "m", "base_url": server.base_url, **fields}), spoken

        yield start


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a fifth of a second count as long for a request."""
    monkeypatch.setattr(request_progress, "_PATIENCE", 0.2)
    monkeypatch.setattr(request_progress, "_PAUSE", 0.2)
