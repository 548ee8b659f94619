"""Crashes: told as what they are, restarted within a budget that all clients share."""

import dataclasses
import os
import signal
import time

import pytest
from faults.support import FAST, ClientProcess, Fake, Stream, ask, eventually

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ServerCrashedError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import lease


def kill_server(fake: Fake, number: int = signal.SIGKILL) -> None:
    """Kill the running server and wait until its supervisor has noticed."""
    server = fake.state().server
    assert server is not None
    os.kill(server.pid, number)
    fake.wait_until_unsupervised()


def test_crash_in_mid_stream_is_explained(fake: Fake):
    """A stream whose server aborts ends, and the lease tells signal, last error and log."""
    fake.switch(crash_after=2)
    with lease(fake.spec(), policy=FAST) as held:
        stream = Stream(held.endpoint)
        with pytest.raises(Exception):  # noqa: B017, PT011
            assert len(list(stream.tokens())) == 3
        error = held.explain()
        stream.close()
    assert isinstance(error, ServerCrashedError)
    assert error.exit_code == -signal.SIGABRT
    assert "SIGABRT" in str(error)
    assert "fake abort" in str(error)
    assert error.log_path == fake.directory().log
    assert error.is_retryable


def test_next_request_restarts_a_crashed_server(fake: Fake):
    """After a crash the next call gets a new server."""
    with lease(fake.spec(), policy=FAST):
        pass
    kill_server(fake)
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 2
        assert ask(held.endpoint)


def test_six_crashes_spend_the_budget(fake: Fake):
    """Five restarts are allowed; after the sixth crash the error tells the last one's details."""
    for generation in range(1, 7):
        with lease(fake.spec(), policy=FAST) as held:
            assert held.endpoint.generation == generation
        kill_server(fake)
    with pytest.raises(ServerCrashedError, match="6 times") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert caught.value.exit_code == -signal.SIGKILL
    assert not caught.value.is_retryable
    assert len(fake.starts()) == 6


def test_budget_is_shared_by_all_processes(fake: Fake):
    """A process that never saw a crash is told of those that others met."""
    for generation in range(1, 7):
        client = ClientProcess(fake)
        assert client.read() == "began"
        assert client.read() == f"leased {generation}"
        client.kill()
        kill_server(fake)
    with pytest.raises(ServerCrashedError, match=r"6 times.*SIGKILL") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert caught.value.log_path == fake.directory().log


def test_waiting_for_the_next_start_is_shown(fake: Fake):
    """After a crash the caller sees that the start waits, and for how long."""
    with lease(fake.spec(), policy=FAST):
        pass
    kill_server(fake)
    policy = dataclasses.replace(FAST, backoff=(60.0,))

    def note(progress: Progress) -> None:
        if "after a crash" in progress.detail:
            raise InterruptedError(progress.stage)

    with pytest.raises(InterruptedError, match="queued"):
        lease(fake.spec(), policy=policy, on_progress=note).__enter__()


@pytest.mark.parametrize(("used", "remembered"), [(True, 1), (False, 2)])
def test_server_that_was_stable_is_forgiven(fake: Fake, used: bool, remembered: int):
    """Earlier crashes are forgotten once a server was ready for long and has answered."""
    policy = dataclasses.replace(FAST, stable_after=0.1)
    with lease(fake.spec(), policy=policy):
        pass
    kill_server(fake)
    client = ClientProcess(fake, policy=policy)
    assert client.read() == "began"
    assert client.read() == "leased 2"
    if used:
        client.finish()
    ready_at = fake.state().ready_at
    assert ready_at is not None
    eventually(lambda: time.monotonic() > ready_at + 0.2, "a while")
    kill_server(fake)
    assert len(fake.state().crashes) == remembered
    if not used:
        client.finish()


def test_stopped_server_is_alive_and_explained_as_well(fake: Fake):
    """A server under SIGSTOP has not died: there is nothing to explain."""
    with lease(fake.spec(), policy=FAST) as held:
        server = fake.state().server
        assert server is not None
        os.kill(server.pid, signal.SIGSTOP)
        assert held.explain() is None


def test_out_of_memory_is_not_retryable(fake: Fake):
    """A crash for want of memory is not repeated by itself."""
    fake.switch(load_error="RuntimeError: [metal::malloc] Unable to allocate 9 bytes")
    with lease(fake.spec(), policy=FAST) as held:
        server = fake.state().server
        assert server is not None
        os.kill(server.pid, signal.SIGABRT)
        error = eventually(held.explain, "the crash to be noticed")
    assert not error.is_retryable
    assert "memory" in (error.hint or "")


def test_request_that_crashes_the_server_is_to_blame_alone(fake: Fake):
    """Its two crashes leave others all of the budget: after five more a call is answered."""
    fake.switch(poison="kill me")
    chat = ChatVllmMlx(model=str(fake.model), max_tokens=3)
    with pytest.raises(ServerCrashedError, match="crashed the server twice") as caught:
        chat.invoke("please kill me")
    assert not caught.value.is_retryable
    assert caught.value.hint
    for _ in range(5):
        with lease(fake.spec(), policy=FAST):
            pass
        kill_server(fake)
    assert len(fake.starts()) == 7
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)


async def test_async_request_that_crashes_the_server_is_to_blame_alone(fake: Fake):
    """The asynchronous twin decides alike."""
    fake.switch(poison="kill me")
    chat = ChatVllmMlx(model=str(fake.model), max_tokens=3)
    with pytest.raises(ServerCrashedError, match="crashed the server twice") as caught:
        await chat.ainvoke("please kill me")
    assert not caught.value.is_retryable
    assert len(list(fake.directory(keep_alive=600.0).blame.iterdir())) == 2


def test_request_in_company_of_the_poisoned_one_is_not_to_blame(fake: Fake):
    """Who was under way beside it cannot be told from it, and may try again."""
    fake.switch(poison="kill me")
    chat = ChatVllmMlx(model=str(fake.model), max_tokens=3)
    with (
        lease(fake.spec(), policy=FAST),
        pytest.raises(ServerCrashedError) as caught,
    ):
        chat.invoke("please kill me")
    assert caught.value.is_retryable
    assert "twice" not in str(caught.value)
