"""A decision model, and a server that has preferences."""

from collections.abc import Iterator

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from unit.decisions.asking import choosing


@pytest.fixture
def server() -> Iterator[Server]:
    """A model that prefers the first place a little, and the word `billing` much."""
    with Server(Dialect("m", multimodal=True)) as running:
        running.dialect.script = choosing
        yield running


@pytest.fixture
def decide(server: Server):
    """A decision model that asks it."""
    from langchain_car_vllm import VllmMlxDecisions

    return VllmMlxDecisions(model="m", base_url=server.base_url)


@pytest.fixture(autouse=True)
def _unknown_alphabets(monkeypatch):
    """Each test meets its server for the first time."""
    monkeypatch.setattr("langchain_car_vllm.decisions.model._alphabets", {})
