"""Admission across processes: the order of asking, and what the dead and the suspended leave."""

import signal
import subprocess

import pytest
from faults.support import eventually
from faults.turns import Make, Server, enter, enters, go_on, line_of, sender, tickets

from langchain_car_vllm.server.directory import ServerDirectory


def test_processes_take_turns_in_the_order_of_asking(directory: ServerDirectory, server: Server):
    """Who asked first is read first, whichever process it is."""
    senders = []
    for waiting in range(4):
        senders.append(sender(directory, server))
        if waiting == 0:
            assert line_of(senders[0]) == "entered"
        eventually(lambda n=waiting: len(tickets(directory)) == n + 1, "the ticket")
    for number, process in enumerate(senders):
        if number:
            assert line_of(process) == "entered"
        assert tickets(directory) == (
            ["answering"] * number + ["prefill"] + ["waiting"] * (3 - number)
        )
        go_on(process)
        assert line_of(process) == "began"
    for process in senders:
        process.communicate("\n")
    assert tickets(directory) == []


def senders_until(
    stage: str, directory: ServerDirectory, server: Server
) -> tuple["subprocess.Popen[str]", "subprocess.Popen[str]"]:
    """Return the first that asked, and the one whose request has come to a stage."""
    first = sender(directory, server)
    assert line_of(first) == "entered"
    if stage == "answering":
        go_on(first)
        assert line_of(first) == "began"
    if stage != "waiting":
        return first, first
    second = sender(directory, server)
    eventually(lambda: "waiting" in tickets(directory), "the ticket")
    return first, second


@pytest.mark.parametrize("stage", ["prefill", "answering", "waiting"])
def test_the_place_of_a_killed_process_is_given_on(
    admission: Make, directory: ServerDirectory, server: Server, stage: str
):
    """At once, but of one that dies while its prompt is read only once the server has let go."""
    first, killed = senders_until(stage, directory, server)
    server.requests = [{"request_id": "a", "phase": "prefill"}]
    gate = admission()
    if stage == "waiting":
        assert not enters(gate)
    killed.kill()
    killed.communicate()
    if stage == "prefill":
        looks = server.looks
        eventually(lambda: not enters(gate) and server.looks > looks + 2, "the server to be asked")
        server.requests = []
    elif stage == "waiting":
        go_on(first)
        assert line_of(first) == "began"
    enter(gate)
    if first is not killed:
        first.communicate("\n")


@pytest.mark.parametrize("stage", ["prefill", "answering", "waiting"])
def test_the_place_of_a_suspended_process_is_given_on(
    admission: Make, directory: ServerDirectory, server: Server, stage: str
):
    """After a while, and where its prompt was read only once the server has let go of it."""
    first, suspended = senders_until(stage, directory, server)
    server.requests = [{"request_id": "a", "phase": "prefill"}]
    gate = admission(max_sequences=1)
    assert not enters(gate)
    suspended.send_signal(signal.SIGSTOP)
    if stage == "prefill":
        looks = server.looks
        eventually(lambda: not enters(gate) and server.looks > looks + 2, "the server to be asked")
        server.requests = []
    elif stage == "waiting":
        go_on(first)
        assert line_of(first) == "began"
        go_on(first)
        first.wait()
    enter(gate)
    suspended.send_signal(signal.SIGCONT)
    if stage == "waiting":
        eventually(lambda: tickets(directory) == ["waiting", "prefill"], "it to queue again")
        gate.leave(is_over=True)
        assert line_of(suspended) == "entered"
    for process in {first, suspended}:
        process.communicate("\n\n")
    gate.leave(is_over=True)
    assert tickets(directory) == []


def test_forked_child_keeps_no_place(admission: Make, directory: ServerDirectory, server: Server):
    """A child that was forked during a turn holds nothing of it once the parent is dead."""
    fork = """
if not os.fork():
    print("forked", flush=True)
    sys.stdin.read()
    gate.close()
    os._exit(0)
"""
    parent = sender(directory, server, fork)
    assert {line_of(parent), line_of(parent)} == {"entered", "forked"}
    parent.kill()
    parent.wait()
    enter(admission())
    parent.communicate()
