"""Under Darwin's rules: connections that nobody refuses, volumes without locks, zombies."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from faults.support import FAST, Background, Fake, ask, eventually

from langchain_car_vllm.cli import machine_checks
from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server import lease, process, stop_server
from langchain_car_vllm.server.port import HeldPort


def test_the_rule_is_imposed(darwin_rules: Path):
    """Connecting to a held port ends with a timeout, and is noted."""
    held = HeldPort()
    try:
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", held.number), 0.05)
    finally:
        held.close()
    assert darwin_rules.read_text().split() == [str(held.number)]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.number), 5)


def test_a_life_without_a_connection_in_vain(fake: Fake, darwin_rules: Path):
    """Load, use, stop, crash and start again: no connect meets a port without a listener."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__())
    eventually(fake.gate_is_awaited, "the load")
    fake.open_gate("load")
    held = call.result()
    assert held is not None
    assert ask(held.endpoint)
    server = fake.state().server
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    fake.wait_until_unsupervised()
    with lease(fake.spec(), policy=FAST) as again:
        assert again.endpoint.generation == 2
        assert ask(again.endpoint)
    assert stop_server(fake.directory(), policy=FAST)
    assert darwin_rules.read_text() == ""


def test_a_start_that_fails_connects_to_nobody(fake: Fake, darwin_rules: Path):
    """A server that ends while it loads is reported without a connection."""
    fake.switch(load_exit=7, load_error="ValueError: no such thing")
    with pytest.raises(Exception, match="exit code 7"), lease(fake.spec(), policy=FAST):
        pass
    assert darwin_rules.read_text() == ""


def test_doctor_finds_the_port_well(darwin_rules: Path):
    """The check of the held port is content, and connects to nobody in vain."""
    assert "kept after the server has ended" in dict(machine_checks.CHECKS)["port"]()
    assert darwin_rules.read_text() == ""


def test_a_volume_without_locks_is_told(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """A network volume answers ENOTSUP: the folder is named, and what to set."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(StateDirectoryError, match="not supported") as caught,
        lease(fake.spec(), policy=FAST),
    ):
        pass
    assert "CAR_HOME" in (caught.value.hint or "")
    assert not fake.starts()


def test_a_group_of_zombies_is_gone(monkeypatch: pytest.MonkeyPatch):
    """Darwin refuses to signal them with EPERM, and does not know their group."""
    child = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    eventually(lambda: process.has_ended(child.pid), "the child to end")

    def deny(group: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def unknown(pid: int) -> int:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(os, "killpg", deny)
    monkeypatch.setattr(os, "getpgid", unknown)
    try:
        assert process.kill_group(child.pid, grace=5.0)
    finally:
        child.wait()
