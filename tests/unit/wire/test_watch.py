"""Waiting honestly: what a request does that takes long to its first token."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.wire.transport.request_progress import Watch, entry_of, log, progress_of

PATIENCE = 15.0
THREAD = "langchain_car_vllm.watch"


def entry(phase: str, elapsed: float = 2.0, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "elapsed_s": elapsed, "prompt_tokens": 3266, **more}


def queued() -> dict[str, Any]:
    return {"num_running": 2, "num_waiting": 1, "requests": [entry("queued")]}


def prefilling() -> dict[str, Any]:
    return {"num_running": 1, "requests": [entry("prefill", cached_tokens=3252)]}


def answering() -> dict[str, Any]:
    return {"num_running": 1, "requests": [entry("generation", completion_tokens=1)]}


class Story:
    """A server whose answer begins when its story has been told, and the one who listens."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.heard: list[Progress] = []
        self._began = time.monotonic()
        self._statuses = statuses
        self._asked = 0
        self._gate = threading.Event()

    def script(self, _body: dict[str, Any]) -> Reply:
        assert self._gate.wait(PATIENCE)
        return Reply(text="at last")

    def status(self) -> dict[str, Any]:
        told = self._statuses[min(self._asked, len(self._statuses) - 1)]
        self._asked += 1
        age = time.monotonic() - self._began
        return {**told, "requests": [{**e, "elapsed_s": age} for e in told["requests"]]}

    def __call__(self, progress: Progress) -> None:
        self.heard.append(progress)
        if len(self.heard) == len(self._statuses):
            self._gate.set()


def told(story: Story, serve: Any) -> tuple[ChatVllmMlx, Dialect]:
    model, dialect = serve(story.script, on_progress=story)
    dialect.status = story.status
    return model, dialect


def wait_for_the_thread_to_end() -> None:
    deadline = time.monotonic() + PATIENCE
    while any(thread.name == THREAD for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def astreamed(model: ChatVllmMlx) -> str:
    return "".join([chunk.text async for chunk in model.astream("hi")])


@pytest.mark.parametrize("kind", ["stream", "astream"])
@pytest.mark.usefixtures("impatient")
def test_a_slow_stream_tells_where_it_is_and_when_the_answer_begins(serve, kind):
    """Queued, prefill with its cached tokens, and generating with the first token."""
    story = Story(queued(), prefilling())
    model, _ = told(story, serve)
    if kind == "stream":
        answer = "".join(chunk.text for chunk in model.stream("hi"))
    else:
        answer = asyncio.run(astreamed(model))
    assert answer == "at last"
    assert [progress.stage for progress in story.heard] == ["queued", "prefill", "generating"]
    assert (story.heard[1].done, story.heard[1].total) == (3252, 3266)
    assert "3,252" in story.heard[1].detail
    wait_for_the_thread_to_end()


@pytest.mark.parametrize("kind", ["invoke", "ainvoke"])
@pytest.mark.usefixtures("impatient")
def test_a_slow_whole_answer_tells_when_it_is_generated(serve, kind):
    """Where no token is seen before the last one, the server says that it generates."""
    story = Story(prefilling(), answering())
    model, _ = told(story, serve)
    answer = model.invoke("hi") if kind == "invoke" else asyncio.run(model.ainvoke("hi"))
    assert answer.content == "at last"
    assert [progress.stage for progress in story.heard] == ["prefill", "generating"]


def test_a_quick_answer_asks_and_tells_nothing(serve):
    """The usual request knows nothing of all this, and the thread ends."""
    heard: list[Progress] = []
    model, dialect = serve(Reply(text="at once"), on_progress=heard.append)
    assert list(model.stream("hi"))
    assert model.invoke("hi").content == "at once"
    assert heard == []
    wait_for_the_thread_to_end()
    assert "/v1/status" not in dialect.paths


@pytest.mark.usefixtures("impatient")
def test_a_server_without_a_status_is_asked_once(serve):
    """An endpoint that somebody else runs may know nothing of it, in later calls neither."""
    gate = threading.Event()
    heard: list[Progress] = []

    def script(_body: dict[str, Any]) -> Reply:
        deadline = time.monotonic() + PATIENCE
        while any(thread.name == THREAD for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            gate.wait(0.02)
        return Reply(text="late")

    model, dialect = serve(script, on_progress=heard.append)
    dialect.status = None
    assert model.invoke("hi").content == "late"
    assert model.invoke("hi").content == "late"
    assert heard == []
    assert dialect.paths.count("/v1/status") == 1


@pytest.fixture
def logged():
    """Set once the watch has logged a failure."""
    event = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event.set()

    listener = Listener(logging.ERROR)
    log.addHandler(listener)
    yield event
    log.removeHandler(listener)


@pytest.mark.usefixtures("impatient")
def test_a_callback_that_fails_harms_no_answer(serve, logged):
    """The answer is what was asked for; the failure is logged."""
    story = Story(queued())

    def failing(progress: Progress) -> None:
        story(progress)
        raise KeyError

    model, dialect = serve(story.script, on_progress=failing)
    dialect.status = story.status
    assert model.invoke("hi").content == "at last"
    assert logged.wait(PATIENCE)


@pytest.mark.parametrize(
    "status",
    [
        {"requests": 5},
        {"requests": [5]},
        {"requests": {"a": 1}},
        {"requests": [{"phase": []}]},
        {"requests": [{"phase": "prefill", "elapsed_s": "x"}]},
        {"requests": [{"phase": "prefill", "elapsed_s": 10**400}]},
        {"num_waiting": "x"},
        {"requests": [{"phase": "prefill", "prompt_tokens": "x", "cached_tokens": [1]}]},
    ],
)
def test_a_status_of_another_kind_tells_nothing(status):
    """Other servers have an address of that name, too; no callback is blamed for it."""
    heard: list[Progress] = []
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", api_key=None, served_model="m")
    watch = Watch(endpoint, heard.append, Stopwatch())
    try:
        watch.tell(status)
    finally:
        watch.end()
    assert heard == []


def test_a_program_ends_although_a_request_is_watched():
    """Neither the thread nor its question keeps the interpreter."""
    ended = threading.Event()

    def script(_body: dict[str, Any]) -> Reply:
        ended.wait(PATIENCE)
        return Reply(text="too late")

    dialect = Dialect(served_model="m", script=script)
    dialect.status = lambda: {"num_waiting": 1}
    code = """
import sys, threading
from langchain_car_vllm import ChatVllmMlx
heard = threading.Event()
llm = ChatVllmMlx(model="m", base_url=sys.argv[1], on_progress=lambda progress: heard.set())
threading.Thread(target=llm.invoke, args=("hi",), daemon=True).start()
assert heard.wait(30)
"""
    with Server(dialect) as server:
        command = [sys.executable, "-c", code, server.base_url]
        done = subprocess.run(command, timeout=50, capture_output=True, text=True, check=False)
        ended.set()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("status", "stage", "detail"),
    [
        ({}, None, None),
        ({"requests": [entry("prefill", elapsed=60.0)]}, None, None),
        ({"requests": [entry("unheard of")]}, None, None),
        (
            {"requests": [entry("generation", 9.0), entry("prefill", 2.1)]},
            "prefill",
            "3,266 tokens",
        ),
        ({"requests": [entry("prefill", 9.0), entry("generation", 1.9)]}, "generating", ""),
        (queued(), "queued", "requests being answered: 2"),
        (prefilling(), "prefill", "3,266 tokens, 3,252 of them from the cache"),
        ({"requests": [entry("prefill", 0.0, prompt_tokens=0)]}, "prefill", ""),
        (
            {"num_waiting": 2, "requests": [entry("generation", 1.0), entry("prefill", 0.0)]},
            "queued",
            "requests waiting: 2",
        ),
    ],
)
def test_the_request_is_told_apart_by_its_age(status, stage, detail):
    """The server numbers requests itself; the simple engine tells no age of those that wait."""
    found = progress_of(status, entry_of(status, 2.0))
    assert (found.stage, found.detail) == (stage, detail) if stage else found is None


def test_a_prompt_that_waits_for_another_one_says_so():
    """Where the server reads one after the other, and calls all of them `prefill`."""
    older = [entry("generation", 20.0), entry("prefill", 9.0)]
    ours = entry("prefill", 2.1)
    status = {"requests": [*older, ours]}
    found = progress_of(status, ours, in_order=True)
    assert found is not None
    assert (found.stage, found.detail) == (
        "queued",
        "waiting while another request's prompt is read",
    )
    for requests, in_order in (
        ([older[0], ours], True),
        ([ours, entry("prefill", 0.5)], True),
        ([*older, ours], False),
    ):
        found = progress_of({"requests": requests}, ours, in_order=in_order)
        assert found is not None
        assert found.stage == "prefill"
