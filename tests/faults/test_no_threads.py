"""Threads that the system refuses, and programs that end: the answer is given nevertheless."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from faults.support import FAST, PATIENCE, Fake

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.server import lease, running_servers, stop_servers
from langchain_car_vllm.support import threads
from langchain_car_vllm.support.bounded_http import HttpError, fetch


@pytest.fixture
def server() -> Iterator[Server]:
    """A served model."""
    with Server(Dialect("m")) as running:
        yield running


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch):
    """Refuse this package any thread from now on, as a container's limit of processes does."""

    def refuse() -> list[str]:
        refused: list[str] = []
        start = threading.Thread.start

        def start_or_refuse(thread: threading.Thread) -> None:
            if thread.name.startswith(("langchain_car_vllm", "car-vllm")):
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
        monkeypatch.setattr(threads, "_pools", {})
        return refused

    return refuse


async def collect(stream) -> str:
    return "".join([chunk.text async for chunk in stream])


def test_an_endpoint_answers_without_any_thread(server, no_threads):
    """Sync, async, streamed, whole; what needs a thread in earnest is done on this one."""
    refused = no_threads()
    llm = ChatVllmMlx(model="m", base_url=server.base_url)
    wanted = llm.invoke("hi").text
    assert wanted
    assert asyncio.run(llm.ainvoke("hi")).text == wanted
    assert "".join(chunk.text for chunk in llm.stream("hi")) == wanted
    assert asyncio.run(collect(llm.astream("hi"))) == wanted
    embeddings = VllmMlxEmbeddings(model="m", base_url=server.base_url)
    assert asyncio.run(embeddings.aembed_query("a")) == embeddings.embed_query("a")
    assert refused


def test_a_server_of_ours_answers_without_any_thread(fake: Fake, no_threads):
    """One that runs already; a start would say that there are too many processes."""
    llm = ChatVllmMlx(model=str(fake.model))
    wanted = llm.invoke("hi").text
    refused = no_threads()
    assert llm.invoke("hi").text == wanted
    assert asyncio.run(llm.ainvoke("hi")).text == wanted
    assert asyncio.run(collect(llm.astream("hi"))) == wanted
    assert refused


def test_servers_are_stopped_without_any_thread(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """As `car-vllm stop --all` does, which is how somebody makes room: one after the other."""
    for kind in ("simple", "batched"):
        with lease(fake.spec(engine=kind), policy=FAST):
            pass
    refused: list[str] = []
    monkeypatch.setattr(threads, "_pools", {})
    monkeypatch.setattr(threading.Thread, "start", refuse_all(refused))
    directories = [directory for directory, _ in running_servers()]
    assert len(directories) == 2
    assert [stopped for _, stopped in stop_servers(directories, policy=FAST)] == [True, True]
    assert refused
    assert running_servers() == []


def refuse_all(refused: list[str]):
    def start(thread: threading.Thread) -> None:
        refused.append(thread.name)
        raise RuntimeError("can't start new thread")

    return start


def test_a_name_is_not_looked_up_without_a_thread(no_threads):
    """That is an error of the request, not of Python's own."""
    no_threads()
    with pytest.raises(HttpError, match="thread"):
        fetch("http://localhost:9/", seconds=5, most_bytes=9)


def test_what_a_refused_thread_was_to_do_is_done_once(monkeypatch: pytest.MonkeyPatch):
    """Those that run already would find it in their queue, too."""
    monkeypatch.setattr(threads, "_pools", {})
    begun, go = threading.Event(), threading.Event()
    first = threads.submit_step(lambda: (begun.set(), go.wait(PATIENCE)))
    assert begun.wait(PATIENCE)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = threads.submit_step(done.append, 1)
    second.result(PATIENCE)
    go.set()
    first.result(PATIENCE)
    threads.submit_step(done.append, 2).result(PATIENCE)
    assert done == [1, 2]


PROGRAM = """
import asyncio, atexit, sys, threading
from langchain_car_vllm import ChatVllmMlx

llm = ChatVllmMlx(model="m", base_url=sys.argv[1])

def ask(place):
    print(place, "invoke", llm.invoke("hi").text, flush=True)
    print(place, "ainvoke", asyncio.run(llm.ainvoke("hi")).text, flush=True)
    print(place, "stream", "".join(c.text for c in llm.stream("hi")), flush=True)

def late():
    threading.main_thread().join()
    ask("thread")

atexit.register(ask, "atexit")
threading.Thread(target=late).start()
"""


# On Python 3.14; `-W` takes the beginning of a message.
LANGSMITHS = "ignore:'asyncio.iscoroutinefunction' is deprecated:DeprecationWarning"


def test_a_program_that_ends_is_answered(server):
    """In a thread that outlives the main one, and in what `atexit` runs."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", LANGSMITHS, "-c", PROGRAM, server.base_url],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    said = [
        f"{place} {call} Hello there, my friend"
        for place in ("thread", "atexit")
        for call in ("invoke", "ainvoke", "stream")
    ]
    assert (done.stdout.splitlines(), done.stderr) == (said, "")
