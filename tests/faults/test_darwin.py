"""Under Darwin's rules: nobody learns from a connection that nobody listens."""

import os
import signal
import socket
from pathlib import Path

import pytest
from faults.support import FAST, Background, Fake, ask, eventually

from langchain_car_vllm.cli import machine_checks
from langchain_car_vllm.server import lease, stop_server
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
    assert "outlives" in dict(machine_checks.CHECKS)["port"]()
    assert darwin_rules.read_text() == ""
