"""Processes under SIGSTOP: they hold every lock and do nothing."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from faults.support import FAST, Background, Fake, ask, eventually

from langchain_car_vllm.errors import ServerStartError
from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.process import is_suspended


def test_suspended_supervisor_of_a_ready_server_disturbs_nobody(fake: Fake):
    """Requests need the server only; idleness waits until the supervisor goes on."""
    with lease(fake.spec(keep_alive=0.1), policy=FAST):
        supervisor = fake.state().supervisor.pid
        os.kill(supervisor, signal.SIGSTOP)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        with lease(fake.spec(keep_alive=0.1), policy=FAST) as held:
            assert ask(held.endpoint)
            assert held.endpoint.generation == 1
    os.kill(supervisor, signal.SIGCONT)
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


def test_a_program_that_is_suspended_in_the_middle_of_a_start_is_told(fake: Fake):
    """Ctrl-Z before there is a supervisor that could be woken: nobody waits for it forever."""
    fake.directory().create()
    lock = fake.directory().start_lock
    code = (
        "import fcntl, os, signal, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code, lock])
    try:
        eventually(lambda: is_suspended(program.pid), "the suspension")
        brief = dataclasses.replace(FAST, handshake=0.3)
        with (
            pytest.raises(ServerStartError, match="seems to be suspended"),
            lease(fake.spec(), policy=brief),
        ):
            pass
    finally:
        program.kill()
        program.wait()
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)


@pytest.mark.parametrize("phase", ["load", "ready"])
def test_suspended_supervisor_is_woken_by_who_waits_for_it(fake: Fake, phase: str):
    """A start under way, and a server that died meanwhile, are not waited for forever."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__().endpoint)
    eventually(fake.starts, "the start")
    if phase == "ready":
        fake.open_gate("load")
        call.result()
    state = fake.state()
    assert state.server is not None
    os.kill(state.supervisor.pid, signal.SIGSTOP)
    if phase == "ready":
        os.kill(state.server.pid, signal.SIGKILL)
        with opened_lock(fake.directory().server_lock) as descriptor:
            eventually(lambda: not is_held(descriptor), "the death of the server")
    fake.open_gate("load")
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == (1 if phase == "load" else 2)


def test_suspended_supervisor_that_holds_the_lease_is_woken(fake: Fake):
    """A supervisor that was suspended in the middle of an idle stop ends it when somebody calls."""
    fake.switch(save_lines=20)
    with lease(fake.spec(keep_alive=0.0), policy=FAST):
        supervisor = fake.state().supervisor.pid
    fake.wait_for_phase("stopping")
    os.kill(supervisor, signal.SIGSTOP)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 2


def test_server_suspended_while_loading_ends_at_the_stall_limit(fake: Fake):
    """It neither logs nor computes, so the start is given up, and nobody is left."""
    fake.switch(load_gate=fake.gate("load"))
    policy = dataclasses.replace(FAST, load_stall=0.5)
    call = Background(lambda: lease(fake.spec(), policy=policy).__enter__())
    os.kill(eventually(fake.starts, "the start")[0], signal.SIGSTOP)
    with pytest.raises(ServerStartError, match="no sign of life"):
        call.result()


def test_suspended_server_is_killed_by_a_stop(fake: Fake):
    """A server under SIGSTOP ends, and its port is free."""
    with lease(fake.spec(), policy=FAST):
        server = fake.state().server
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    assert stop_server(fake.directory(), policy=FAST)
    assert not server.find()


WATCHES = """
import time
from langchain_car_vllm.support.stall import Stall
stall, began = Stall(2.0, lambda: None), time.monotonic()
print("watching", flush=True)
while not stall.is_stalled():
    time.sleep(0.01)
print(time.monotonic() - began, flush=True)
"""


def test_time_in_which_nobody_could_look_is_no_silence():
    """A container may be paused, with all that is in it: what it did not do then is no stall."""
    with subprocess.Popen(
        [sys.executable, "-c", WATCHES], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "watching\n"
        watching.send_signal(signal.SIGSTOP)
        resume_at = time.monotonic() + 3.0
        eventually(lambda: time.monotonic() > resume_at, "more than the limit")
        watching.send_signal(signal.SIGCONT)
        assert float(watching.stdout.readline()) > 3.5
