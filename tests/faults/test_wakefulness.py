"""A Mac is kept awake while it works for somebody, and no longer; `caffeinate` is imitated."""

import asyncio
import dataclasses
import errno
import os
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from faults.support import FAST, ClientProcess, Fake, ask, eventually

from langchain_car_vllm.gateway import Gateway
from langchain_car_vllm.server import lease, stop_server, wakefulness
from langchain_car_vllm.server.client.keeper import Keeper
from langchain_car_vllm.server.client_record import keepers, requesters
from langchain_car_vllm.server.state import read_state
from langchain_car_vllm.server.wakefulness import Wakefulness

_CAFFEINATE = """#!/bin/sh
echo "$$ $*" >> {notes}
while kill -0 "$3" 2>/dev/null; do sleep 0.05; done
"""
_REFUSED = """#!/bin/sh
echo "$$ $*" >> {notes}
exit 1
"""
_MAC = """
from langchain_car_vllm.server import wakefulness
wakefulness.PLATFORM, wakefulness.PROGRAM = "darwin", {program!r}
"""
_KEEPER = """
with wakefulness.Wakefulness():
    print("awake", flush=True)
    input()
"""


class Notes:
    """What the imitated `caffeinate` was started with.

    Args:
        file: One line for each: its process id and its arguments.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def lines(self) -> list[str]:
        """Return the arguments of all, in order."""
        return [line.split(" ", 1)[1] for line in self._text()]

    def alive(self) -> list[int]:
        """Return those that run, and those that nobody reaped."""
        return [pid for line in self._text() if psutil.pid_exists(pid := int(line.split()[0]))]

    def _text(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notes:
    """A `caffeinate`, and supervisors that take this machine for a Mac's."""
    folder = tmp_path / "mac"
    folder.mkdir()
    file = folder / "notes"
    program = folder / "caffeinate"
    program.write_text(_CAFFEINATE.format(notes=shlex.quote(str(file))))
    (folder / "sitecustomize.py").write_text(_MAC.format(program=str(program)))
    python = folder / "python"
    path = f'PYTHONPATH="{folder}:$PYTHONPATH"'
    python.write_text(f'#!/bin/sh\nexport {path}\nexec {sys.executable} "$@"\n')
    for executable in (program, python):
        executable.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    monkeypatch.setattr(wakefulness, "PLATFORM", "darwin")
    monkeypatch.setattr(wakefulness, "PROGRAM", str(program))
    return Notes(file)


def test_awake_for_a_load_and_a_lease_and_no_longer(fake: Fake, notes: Notes):
    """One runs from the start to the end of the last request, and none for an idle server."""
    policy = dataclasses.replace(FAST, awake_linger=0.05)
    with lease(fake.spec(), policy=policy):
        state = read_state(fake.directory().state)
        assert state is not None
        assert notes.lines()[0] == f"-i -w {state.supervisor.pid}"
        eventually(lambda: len(notes.alive()) == 1, "the Mac to be kept awake")
    eventually(lambda: not notes.alive(), "the Mac to be let asleep")
    with lease(fake.spec(), policy=policy):
        eventually(lambda: len(notes.alive()) == 1, "the Mac to be kept awake again")
        stop_server(fake.directory(), policy=FAST)
    eventually(lambda: not notes.alive(), "nobody to be left after a stop")


def test_a_server_that_is_only_kept_lets_the_mac_sleep(fake: Fake, notes: Notes):
    """`car-vllm serve` keeps one from login on; what it answers alone keeps the Mac awake."""
    policy = dataclasses.replace(FAST, awake_linger=0.05)
    with closing(Keeper(60.0)) as keeper:
        with lease(fake.spec(), policy=policy, keeper=keeper):
            pass
        eventually(lambda: not notes.alive(), "the Mac to be let asleep")
        with lease(fake.spec(), policy=policy):
            eventually(lambda: len(notes.alive()) == 1, "the Mac to be kept awake for a request")
        eventually(lambda: not notes.alive(), "the Mac to be let asleep after it")
        assert fake.state().phase == "ready"


def test_a_suspended_request_lets_the_mac_sleep(fake: Fake, notes: Notes):
    """Ctrl-Z in the middle of an answer, and the lid stays open for the night."""
    client = ClientProcess(fake, policy=dataclasses.replace(FAST, awake_linger=0.05))
    assert [client.read()[:5] for _ in range(2)] == ["began", "lease"]
    eventually(lambda: len(notes.alive()) == 1, "the Mac to be kept awake")
    os.kill(client.pid, signal.SIGSTOP)
    eventually(lambda: not notes.alive(), "the Mac to be let asleep")
    os.kill(client.pid, signal.SIGCONT)
    eventually(lambda: len(notes.alive()) == 1, "the Mac to be kept awake again")
    client.finish()


def test_a_gateway_makes_no_request_of_its_own(fake: Fake):
    """It is seen as one that keeps the server, until something is asked of it."""
    clients = fake.directory().clients

    async def keep() -> tuple[list[int], list[int]]:
        async with Gateway(fake.spec(), "key").hold():
            return keepers(clients), requesters(clients)

    assert asyncio.run(keep()) == ([os.getpid()], [])
    assert keepers(clients) == []


def test_off_by_its_variable(fake: Fake, notes: Notes, monkeypatch: pytest.MonkeyPatch):
    """`CAR_VLLM_MLX_CAFFEINATE=0` starts none."""
    monkeypatch.setenv("CAR_VLLM_MLX_CAFFEINATE", "0")
    with lease(fake.spec(), policy=FAST):
        pass
    assert notes.lines() == []


def test_it_ends_with_a_killed_process(notes: Notes):
    """Whoever is killed leaves none behind."""
    keeper = subprocess.Popen(
        [sys.executable, "-c", _MAC.format(program=wakefulness.PROGRAM) + _KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdout is not None
    keeper.stdout.readline()
    eventually(lambda: len(notes.alive()) == 1, "it to run")
    keeper.send_signal(signal.SIGKILL)
    keeper.communicate()
    eventually(lambda: not _running(notes), "it to end with what it watches")


def test_one_that_was_ended_is_started_again(notes: Notes, monkeypatch: pytest.MonkeyPatch):
    """Somebody else's kill is noticed, and leaves no zombie."""
    monkeypatch.setattr(wakefulness, "_BETWEEN_STARTS", 0.0)  # as after a long life
    with Wakefulness() as awake:
        eventually(lambda: len(notes.alive()) == 1, "the first to run")
        [first] = notes.alive()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: _look(awake) or len(notes.lines()) == 2, "another to be started")
        eventually(lambda: notes.alive() != [first], "the first to be reaped")
    assert notes.alive() == []


def test_one_that_ends_at_once_is_not_started_again_and_again(fake: Fake, notes: Notes):
    """Where it is refused, its end wakes the supervisor, which would start it hundreds of times."""
    Path(wakefulness.PROGRAM).write_text(_REFUSED.format(notes=shlex.quote(str(notes.file))))
    with lease(fake.spec(), policy=FAST) as held:
        for _ in range(20):
            ask(held.endpoint)
        assert len(notes.lines()) == 1


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_machine_without_it(monkeypatch: pytest.MonkeyPatch, platform: str):
    """Nothing is started, and nothing fails."""
    monkeypatch.setattr(wakefulness, "PLATFORM", platform)
    monkeypatch.setattr(wakefulness, "PROGRAM", "/nonexistent/caffeinate")
    with Wakefulness() as awake:
        assert awake.is_possible is False


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_what_the_system_refuses_for_a_moment(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, number: int
):
    """It is no machine without it: the next look tries again."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        awake = Wakefulness()
        _look(awake)
        assert awake.keeper is None
    with awake:
        eventually(lambda: len(notes.alive()) == 1, "the Mac to be kept awake")


def _look(awake: Wakefulness) -> None:
    awake.look(is_working=True)


def _running(notes: Notes) -> list[int]:
    """Return those that run; here nobody may reap an orphan."""
    return [pid for pid in notes.alive() if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
