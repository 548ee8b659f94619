"""Whose connections requests go out over, and as whom: event loops, forks, proxies, headers."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from fakes.reply import Reply
from unit.wire.calling import astreamed

from langchain_car_vllm.wire.transport import connection_pools


def test_a_second_event_loop_works_and_leaves_no_socket(serve):
    """Each `asyncio.run` gets a client of its own, closed with its loop."""
    model, _ = serve()
    for _ in range(3):
        assert asyncio.run(model.ainvoke("hi")).content


TAKES_ITS_OWN_STEPS = """
import asyncio, atexit, sys

@atexit.register
def forget():  # as the interpreter does it at its end to modules that somebody still holds
    module = sys.modules["langchain_car_vllm.wire.transport.connection_pools"]
    vars(module).update({name: None for name in vars(module) if name != "__builtins__"})

from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model="m", base_url=sys.argv[1])
loop = asyncio.new_event_loop()
task = loop.create_task(model.ainvoke("hi"))
asyncio._set_running_loop(loop)
while not task.done():
    loop._run_once()
asyncio._set_running_loop(None)
assert task.result()
"""


def test_a_loop_that_takes_its_own_steps_ends_in_silence(serve):
    """As nest_asyncio's do in notebooks: not the loop ends its generators, the interpreter does."""
    model, _ = serve()
    done = subprocess.run(
        [sys.executable, "-c", TAKES_ITS_OWN_STEPS, model.base_url],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert not done.stderr


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h", "socks", "nonsense"])
def test_nothing_in_the_environment_redirects_a_request(serve, monkeypatch, scheme):
    """Neither OpenAI's variables nor a proxy of any kind change where a request goes or as whom."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LANGSMITH_GATEWAY", "true")
    monkeypatch.setenv("LANGSMITH_GATEWAY_API_KEY", "lsv2-secret")
    model, dialect = serve()
    assert model.invoke("hi").content
    assert asyncio.run(model.ainvoke("hi")).content
    assert "secret" not in str(dialect.headers)
    assert not any("openai-organization" in headers for headers in dialect.headers)


def test_heartbeats_do_not_end_an_asynchronous_stream(serve, monkeypatch):
    """Comments before the first token are no answer and no failure, however long they last."""
    monkeypatch.setenv("LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S", "0.05")
    model, _ = serve(Reply(text="very late", heartbeats=20, pause=0.2))
    assert asyncio.run(astreamed(model, "hi", timeout=10)).content == "very late"


@pytest.mark.parametrize("given", [{}, {"extra_headers": {"X-Other": "1"}}])
def test_a_header_of_the_users_takes_the_place_of_ours(serve, given):
    """A gateway has a key of its own, however the user writes the header's name."""
    model, dialect = serve(default_headers={"Authorization": "Basic abc", "User-Agent": "mine"})
    model.invoke("hi", **given)
    assert dialect.headers[-1]["authorization"] == "Basic abc"
    assert dialect.headers[-1]["user-agent"] == "mine"
    model.invoke("hi", extra_headers={"AUTHORIZATION": "Basic def"})
    assert dialect.headers[-1]["authorization"] == "Basic def"


def test_a_forked_child_has_connections_of_its_own(serve):
    """Over its parent's each could get the other's answer."""
    model, dialect = serve()
    model.invoke("hi")
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            status = 0 if model.invoke("from the child").content else 1
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(set(dialect.peers)) == 2


def test_a_forked_child_can_leave_a_stream_of_its_parent(serve):
    """Whatever another thread of the parent's did to the connections in that instant."""
    model, _ = serve(Reply(text="one two three"))
    stream = model.stream("hi")
    next(stream)
    *_, used = connection_pools._pools.values()
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with used.pool._optional_thread_lock:
            is_held.set()
            may_end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait(30)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        stream.close()
        os._exit(0)
    may_end.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "".join(chunk.text for chunk in stream) == "two three"
