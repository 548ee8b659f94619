"""What the supervisor inherits from its client and its predecessor, and what it does not."""

import json
import os
import select
import signal
import subprocess
import sys

import psutil
import pytest
from faults.support import (
    FAST,
    PATIENCE,
    Background,
    ClientProcess,
    Fake,
    ask,
    forked_child,
    lose_supervisor,
    unguarded,
)

from langchain_car_vllm.errors import ServerStartError
from langchain_car_vllm.server import lease, stop_server


def test_blocked_signals_of_the_client_are_not_inherited(fake: Fake):
    """A client thread that blocks SIGTERM and SIGINT gets a server that can be stopped."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    try:
        with lease(fake.spec(), policy=FAST):
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    stop_server(fake.directory(), policy=FAST)
    log = fake.directory().log.read_text()
    assert fake.state().reason == "user", fake.state().reason
    assert "Saving prefix cache" in log


def test_for_ever_of_a_dead_client_ends_with_its_server(fake: Fake):
    """After a reboot or a lost supervisor, the -1 of a process that is gone binds nobody."""
    client = ClientProcess(fake, keep_alive=-1.0)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    state = fake.state(keep_alive=-1.0)
    client.kill()
    os.kill(state.supervisor.pid, signal.SIGKILL)  # as a power cut does
    fake.wait_until_unsupervised()
    values = json.loads(fake.directory().state.read_text())
    values["boot_id"] = "another boot"
    fake.directory().state.write_text(json.dumps(values))
    with lease(fake.spec(keep_alive=0.1), policy=FAST):
        pass
    fake.wait_until_unsupervised(patience=3)


def test_draining_server_keeps_its_own_processes(fake: Fake):
    """While the server saves its cache, the processes that it works with are not killed."""
    saving = 'say("INFO: [lifespan] Saving prefix cache to nowhere")'
    seen = f"{saving}\n        time.sleep(0.2)\n        say(f'worker: {{WORKER.poll()}}')"
    worker = (
        "WORKER = None\n\n\ndef lose_port(arguments):\n    global WORKER\n"
        "    WORKER = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    )
    source = fake.binary.read_text().replace(saving, seen, 1)
    source = source.replace("def lose_port(arguments):\n", worker, 1)
    fake.binary.write_text(source)
    with lease(fake.spec(), policy=FAST):
        pass
    stop_server(fake.directory(), policy=FAST)
    assert "worker: None" in fake.directory().log.read_text()


def test_orphan_without_death_signal_is_not_used(fake: Fake):
    """Where nothing told the server that its supervisor died, the next call replaces it."""
    unguarded(fake)
    with lease(fake.spec(), policy=FAST) as held:
        first = held.endpoint.generation
    state = fake.state()
    lose_supervisor(state)
    fake.wait_until_unsupervised()
    assert psutil.pid_exists(state.server.pid)
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == first + 1


def test_for_ever_ends_with_a_users_stop(fake: Fake):
    """After a stop, the -1 of a live process that has not called since binds nobody."""
    with lease(fake.spec(keep_alive=-1.0), policy=FAST):
        pass
    stop_server(fake.directory(), policy=FAST)
    client = ClientProcess(fake, keep_alive=0.1)
    assert client.read() == "began"
    assert client.read() == "leased 2"
    client.finish()
    fake.wait_until_unsupervised(patience=3)


def test_fork_during_a_gentle_stop_leaves_the_lease_free(fake: Fake):
    """A child forked while another thread stops a server does not bar everybody from the lease."""
    fake.switch(save_lines=10)
    with lease(fake.spec(), policy=FAST):
        pass
    stopping = Background(lambda: stop_server(fake.directory(), force=False, policy=FAST))
    fake.wait_for_phase("stopping")
    with forked_child():
        assert stopping.result()
        with lease(fake.spec(), policy=FAST, startup_timeout=PATIENCE):
            pass


def test_pipes_of_the_client_are_not_inherited(fake: Fake):
    """Whoever waits for the end of a pipe that a client inherited does not wait for the server."""
    reading, writing = os.pipe()
    client = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
from langchain_car_vllm.server import Policy, ServerSpec, lease
spec = ServerSpec(source={str(fake.model)!r}, served_name={str(fake.model)!r}, keep_alive=60.0)
with lease(spec, policy=Policy.from_dict({FAST.to_dict()!r})):
    pass
""",
        ],
        pass_fds=(writing,),
    )
    os.close(writing)
    assert client.wait(20) == 0
    assert fake.state().phase == "ready"
    with os.fdopen(reading, "rb") as pipe:
        poll = select.poll()  # a descriptor may have any number
        poll.register(pipe, select.POLLIN | select.POLLHUP)
        ended = poll.poll(1000)
        assert ended, "the supervisor or its server keeps the pipe open"


def test_client_that_does_not_wait_for_its_children(fake: Fake):
    """A program that ignores SIGCHLD, so that the kernel reaps its children, is served as well."""
    usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with lease(fake.spec(), policy=FAST) as held:
            assert ask(held.endpoint)
    finally:
        signal.signal(signal.SIGCHLD, usual)


def test_failure_is_told_to_a_client_that_does_not_wait_for_its_children(
    fake: Fake, tmp_path, monkeypatch
):
    """The supervisor's last words are not lost with its exit code."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho this Python is broken >&2\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ServerStartError, match="this Python is broken"):
            lease(fake.spec(), policy=FAST).__enter__()
    finally:
        signal.signal(signal.SIGCHLD, usual)
