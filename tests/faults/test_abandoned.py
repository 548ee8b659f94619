"""A start that nobody waits for any more ends by itself, unless somebody was promised it."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys

import pytest
from faults.support import FAST, PATIENCE, ClientProcess, Fake, eventually

from langchain_car_vllm.errors import ServerStartingError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import Policy, lease
from langchain_car_vllm.server.client.stop import idle_seconds
from langchain_car_vllm.server.client_record import promise_path

HASTY = dataclasses.replace(FAST, abandoned_patience=0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_start_ends_with_the_last_program_that_wanted_it(fake: Fake, number: int):
    """Ctrl-C in a script leaves no server behind that comes up minutes later."""
    fake.switch(load_gate=fake.gate("load"))
    client = ClientProcess(fake, policy=HASTY)
    assert client.read() == "began"
    eventually(fake.gate_is_awaited, "the load")
    os.kill(client.pid, number)
    fake.wait_until_unsupervised()
    state = fake.state()
    assert (state.phase, state.reason) == ("stopped", "idle")
    client.kill()


def test_start_goes_on_for_others(fake: Fake):
    """One waiter's end is nothing to the rest."""
    fake.switch(load_gate=fake.gate("load"))
    first, second = ClientProcess(fake, policy=HASTY), ClientProcess(fake, policy=HASTY)
    for client in (first, second):
        assert client.read() == "began"
    eventually(fake.gate_is_awaited, "the load")
    first.kill()
    marks = fake.directory().clients
    eventually(lambda: len(list(marks.glob(".held-*"))) >= 2, "both")
    fake.open_gate("load")
    assert second.read() == "leased 1"
    second.finish()


def test_start_goes_on_after_a_startup_timeout(fake: Fake):
    """The error says so, and a script that ends with it may be run again later."""
    fake.switch(load_gate=fake.gate("load"))
    code = f"""
from langchain_car_vllm.errors import ServerStartingError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import Policy, ServerSpec, lease
spec = ServerSpec.from_dict({fake.spec().to_dict()!r})
policy = Policy.from_dict({HASTY.to_dict()!r})
try:
    lease(spec, policy=policy, startup_timeout=1.0).__enter__()
except ServerStartingError:
    print("goes on")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "goes on\n"
    eventually(fake.gate_is_awaited, "the load")
    with pytest.raises(ServerStartingError):
        lease(fake.spec(), policy=HASTY, startup_timeout=1.5).__enter__()
    assert fake.state().phase == "load"
    fake.open_gate("load")
    assert fake.wait_for_phase("ready").generation == 1


@pytest.mark.parametrize("release", ["this", "an earlier one"])
def test_promise_of_a_lost_start_binds_no_other(fake: Fake, release: str):
    """Killed with the machine, say; what an earlier release noted holds for any start."""
    fake.switch(load_gate=fake.gate("load"))
    with pytest.raises(ServerStartingError):
        lease(fake.spec(), policy=HASTY, startup_timeout=1.0).__enter__()
    lost = fake.wait_for_phase("load")
    note = promise_path(fake.directory().clients)
    if release != "this":
        note.write_text("")
    for path in note.parent.glob("[!.]*"):
        path.unlink()  # of this program, which lives on
    os.kill(lost.supervisor.pid, signal.SIGKILL)
    fake.wait_until_unsupervised()
    client = ClientProcess(fake, policy=HASTY)
    assert client.read() == "began"
    eventually(lambda: fake.state().generation > lost.generation, "the next start")
    fake.wait_for_phase("load")
    client.kill()
    if release == "this":
        fake.wait_until_unsupervised()
        assert (fake.state().phase, fake.state().reason) == ("stopped", "idle")
    else:
        fake.open_gate("load")
        fake.wait_for_phase("ready")


def test_interrupted_wait_says_what_becomes_of_the_start(
    fake: Fake, caplog: pytest.LogCaptureFixture
):
    """In a notebook the program lives on, and so does the start; the message names the command."""
    fake.switch(load_gate=fake.gate("load"))

    def interrupt(progress: Progress) -> None:
        if progress.stage == "load":
            raise KeyboardInterrupt

    def wait() -> None:
        with lease(fake.spec(), policy=FAST, on_progress=interrupt):
            pass

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        wait()
    assert "car-vllm stop" in caplog.text


def test_time_until_an_idle_stop_is_known(fake: Fake):
    """`ps` tells how long a server stays, from what its clients wished."""
    with lease(fake.spec(keep_alive=100.0), policy=FAST):
        state = fake.state()
        assert state.ready_at is not None
        assert idle_seconds(fake.directory(), state, state.ready_at) is None
    left = idle_seconds(fake.directory(), state, state.ready_at)
    assert left is not None
    assert 100.0 <= left < 100.0 + PATIENCE
    with lease(fake.spec(keep_alive=-1.0), policy=FAST):
        pass
    assert idle_seconds(fake.directory(), state, state.ready_at) == float("inf")
    assert state.kind == "chat"
    assert Policy().abandoned_patience < 10
