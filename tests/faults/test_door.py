"""One door for every connection, and what a program keeps open behind it."""

import asyncio
import dataclasses
import json
import os
import socket
from collections.abc import Callable
from functools import partial

import psutil
import pytest
from fakes.published_configs import CROSS_ENCODER
from faults.support import FAST, PATIENCE, Fake
from faults.test_strangers import Stranger, die
from langchain_core.messages import HumanMessage

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import Endpoint, lease, stop_server
from langchain_car_vllm.server.client.liveness import holds_other_end, is_serving
from langchain_car_vllm.server.client.status_look import StatusLook
from langchain_car_vllm.wire.embed import Embedder
from langchain_car_vllm.wire.errors import ConnectionFailedError
from langchain_car_vllm.wire.rerank import Ranker
from langchain_car_vllm.wire.transport.remote import get_json
from langchain_car_vllm.wire.transport.request_progress import Watch


def chat_of(endpoint: Endpoint):
    return ChatVllmMlx(model=endpoint.served_model)._chat(endpoint)


def watch(endpoint: Endpoint) -> None:
    """Ask for the state of a request, as the progress thread does."""
    told: list[Progress] = []
    watched = Watch(endpoint, told.append)
    watched.due = 0.0
    get_json(endpoint.base_url, "/status", endpoint.api_key, is_ours=endpoint.is_ours)
    watched.end()


def look(endpoint: Endpoint) -> None:
    """Ask what the server works on, as `ps` and those who wait for their turn do."""
    looking = StatusLook(endpoint)
    looking.wait(PATIENCE)
    assert looking.is_over()


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(ConnectionFailedError, match="gone"):
        call()


CONNECTIONS = {
    "invoke": lambda e: refused(lambda: chat_of(e).invoke([HumanMessage("a secret")])),
    "ainvoke": lambda e: refused(lambda: asyncio.run(chat_of(e).ainvoke([HumanMessage("s")]))),
    "stream": lambda e: refused(lambda: list(chat_of(e).stream([HumanMessage("a secret")]))),
    "tokens": lambda e: chat_of(e).count_tokens([HumanMessage("a secret")]),
    "embed": lambda e: refused(lambda: Embedder(e, (), None).embed(["a secret"])),
    "aembed": lambda e: refused(lambda: asyncio.run(Embedder(e, (), None).aembed(["secret"]))),
    "rerank": lambda e: refused(lambda: Ranker(e, (), None).score("a secret", ["a secret"])),
    "arerank": lambda e: refused(
        lambda: asyncio.run(Ranker(e, (), None).ascore("a secret", ["a secret"]))
    ),
    "progress": watch,
    "status": look,
}


def test_no_connection_speaks_to_a_stranger_on_a_dead_servers_port(fake: Fake):
    """Requests, counts, vectors, scores, looks and the progress thread go through one door."""
    with lease(fake.spec(), policy=FAST) as held:
        stranger = Stranger(die(fake, "server"), fake.spec().served_name)
        try:
            for call in CONNECTIONS.values():
                call(held.endpoint)
        finally:
            stranger.leave()
    assert stranger.heard == []


def test_no_connection_speaks_to_another_process_while_the_server_lives(fake: Fake):
    """The other end has to belong to the very server, whatever the lock and the state say."""
    with lease(fake.spec(), policy=FAST) as held:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        stranger = Stranger(port, fake.spec().served_name)
        elsewhere = dataclasses.replace(held.endpoint, base_url=f"http://127.0.0.1:{port}/v1")
        try:
            for call in CONNECTIONS.values():
                call(elsewhere)
        finally:
            stranger.leave()
        assert stranger.heard == []
        assert chat_of(held.endpoint).invoke([HumanMessage("hi")]).text


def test_the_other_end_is_asked_of_the_kernel(fake: Fake):
    """A connection of ours to the server, one that does not exist, and a process that is gone."""
    with lease(fake.spec(), policy=FAST):
        state = fake.state()
        assert state.server is not None
        assert state.port is not None
        with socket.create_connection(("127.0.0.1", state.port)) as connection:
            own_port = connection.getsockname()[1]
            assert holds_other_end(state.server, state.port, own_port)
            me = dataclasses.replace(state.server, pid=os.getpid())
            assert not holds_other_end(me, state.port, own_port)
            gone = dataclasses.replace(state.server, pid=2**22 + 1)
            assert not holds_other_end(gone, state.port, own_port)
        assert is_serving(fake.directory(), state.generation)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_process_of_another_user_is_not_the_server(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """The kernel tells nothing of it, as a sandbox may tell nothing of the user's own."""
    with lease(fake.spec(), policy=FAST):
        state = fake.state()
        assert state.server is not None
        assert state.port is not None
        with socket.create_connection(("127.0.0.1", state.port)) as connection:
            own_port = connection.getsockname()[1]

            def refuse(*_: object) -> None:
                raise psutil.AccessDenied

            monkeypatch.setattr(psutil.Process, "net_connections", refuse)
            assert holds_other_end(state.server, state.port, own_port)
            os.seteuid(12345)
            try:
                assert not holds_other_end(state.server, state.port, own_port)
            finally:
                os.seteuid(0)


@pytest.mark.parametrize("way", ["sync", "async", "embed", "rerank", "arerank"])
@pytest.mark.parametrize(
    "restarts", [12, pytest.param(100, marks=[pytest.mark.full, pytest.mark.timeout(1200)])]
)
def test_restarts_leave_nothing_open(fake: Fake, way: str, restarts: int):
    """The clients of a server that was started anew are closed, in their own loop."""
    me = psutil.Process()
    kind = {"sync": "chat", "async": "chat", "embed": "embeddings"}.get(way, "reranker")
    if kind == "reranker":
        (fake.model / "config.json").write_text(json.dumps(CROSS_ENCODER))
    model = ChatVllmMlx(model=str(fake.model), max_tokens=3)
    embeddings = VllmMlxEmbeddings(model=str(fake.model))
    reranker = VllmMlxReranker(model=str(fake.model))
    directory = fake.directory(kind=kind)
    opened = []
    with asyncio.Runner() as runner:
        calls = {
            "sync": partial(model.invoke, "hi"),
            "async": lambda: runner.run(model.ainvoke("hi")),
            "embed": partial(embeddings.embed_query, "hi"),
            "rerank": partial(reranker.rerank, ["hi"], "hi"),
            "arerank": lambda: runner.run(reranker.arerank(["hi"], "hi")),
        }
        for _ in range(restarts):
            assert calls[way]()
            stop_server(directory, force=True, policy=FAST)
            opened.append(me.num_fds())
        # The last server's client may still be open.
        assert max(opened[len(opened) // 2 :]) <= opened[3] + 2, opened
