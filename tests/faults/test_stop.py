"""Stop means stopped: nobody left, nothing on the port, requests under way told so."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from faults.support import (
    FAST,
    Background,
    ClientProcess,
    Fake,
    Stream,
    altered_supervisor,
    ask,
    eventually,
)

from langchain_car_vllm.errors import ServerBusyError, ServerError, ServerStoppedError
from langchain_car_vllm.server import (
    directory_of,
    lease,
    running_servers,
    stop_server,
    stop_servers,
)
from langchain_car_vllm.server.port import is_free
from langchain_car_vllm.server.state import read_state


def stop(fake: Fake) -> bool:
    return stop_server(fake.directory(), policy=FAST)


def test_stop_leaves_nothing(fake: Fake):
    """After `stop_server` the port refuses and the state says who stopped it."""
    with lease(fake.spec(), policy=FAST):
        pass
    port = fake.state().port
    assert port is not None
    assert stop(fake)
    assert is_free(port)
    assert fake.state().reason == "user"
    assert not stop(fake)


def test_stop_ends_requests_under_way_with_its_own_error(fake: Fake):
    """A stream under way ends and is explained as stopped, not as crashed."""
    fake.switch(token_gate=fake.gate("token"))
    with lease(fake.spec(), policy=FAST) as held:
        stream = Stream(held.endpoint)
        tokens = stream.tokens()
        assert next(tokens) == "tok0 "
        assert stop(fake)
        with pytest.raises(Exception):  # noqa: B017, PT011
            assert list(tokens)
        assert isinstance(held.explain(), ServerStoppedError)
        stream.close()


def test_call_during_a_stop_waits_and_starts_again(fake: Fake):
    """A call that meets a stopping server gets a new one."""
    fake.switch(save_lines=10)
    with lease(fake.spec(), policy=FAST):
        pass
    stopping = Background(lambda: stop(fake))
    fake.wait_for_phase("stopping")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 2
        assert ask(held.endpoint)
    assert stopping.result()


def test_server_that_saves_its_cache_is_waited_for(fake: Fake):
    """Saving takes longer than the grace and is not cut while it makes progress."""
    fake.switch(save_lines=30)
    with lease(fake.spec(), policy=FAST):
        pass
    log = fake.directory().log
    assert stop(fake)
    assert "saved entry 29" in log.read_text()


def test_server_that_ignores_sigint_is_killed(fake: Fake):
    """A deaf server is gone after the graces."""
    fake.switch(ignore_sigint=True)
    with lease(fake.spec(), policy=FAST):
        pass
    assert stop(fake)


def test_grandchild_with_the_servers_output_is_ended_too(fake: Fake):
    """A process that the server left behind in its group is gone as well."""
    fake.switch(grandchild=True)
    with lease(fake.spec(), policy=FAST):
        pass
    assert stop(fake)


def test_stop_while_loading_aborts_the_load(fake: Fake):
    """Callers who wait for the load are told that it was stopped."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__())
    fake.wait_for_phase("load")
    assert stop(fake)
    with pytest.raises(ServerStoppedError):
        call.result()


def test_two_stops_at_once_both_return(fake: Fake):
    """Both find the server gone."""
    with lease(fake.spec(), policy=FAST):
        pass
    stops = [Background(lambda: stop(fake)) for _ in range(2)]
    outcomes = [call.result() for call in stops]
    assert any(outcomes)


def test_gentle_stop_refuses_while_somebody_is_served(fake: Fake):
    """Without force a server with a request under way stays."""
    client = ClientProcess(fake)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    with pytest.raises(ServerBusyError):
        stop_server(fake.directory(), force=False, policy=FAST)
    client.finish()
    assert stop_server(fake.directory(), force=False, policy=FAST)


def test_suspended_supervisor_is_killed_and_its_server_with_it(fake: Fake):
    """A supervisor under SIGSTOP cannot stop anything, so it is ended by identity."""
    with lease(fake.spec(), policy=FAST):
        pass
    os.kill(fake.state().supervisor.pid, signal.SIGSTOP)
    assert stop(fake)
    assert fake.state().reason == "user"


def test_suspended_server_is_killed(fake: Fake):
    """A server under SIGSTOP ends with SIGKILL."""
    with lease(fake.spec(), policy=FAST):
        pass
    server = fake.state().server
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    assert stop(fake)


def wrap(fake: Fake, line: str) -> None:
    """Put a shell script in the place of the binary; `$REAL` is the fake itself."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nREAL="{sys.executable} {real}"\n{line}\n')
    fake.binary.chmod(0o755)


def test_a_stop_that_a_sandbox_forbids_says_so(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """A sandbox may keep a program from signalling others, and from knowing its own age."""

    def deny(process: psutil.Process, *_: object) -> None:
        raise psutil.AccessDenied(process.pid)

    with monkeypatch.context() as sandbox:
        sandbox.setattr(psutil.Process, "send_signal", deny)
        sandbox.setattr(psutil.Process, "create_time", deny)
        with lease(fake.spec(), policy=FAST) as held:
            assert ask(held.endpoint)
        with pytest.raises(ServerError, match="may not signal process") as refused:
            stop_server(fake.directory(), policy=FAST)
        assert "terminal" in (refused.value.hint or "")
    assert stop_server(fake.directory(), policy=FAST)


@pytest.mark.parametrize(
    "line", ['$REAL "$@"', '$REAL "$@" & wait', 'exec $REAL "$@"', 'trap "" INT; $REAL "$@"']
)
def test_server_behind_a_shell_script_saves_its_cache(fake: Fake, line: str):
    """With `exec` or without, a stop reaches the server, which ends as after Ctrl-C."""
    wrap(fake, line)
    saved = fake.root / "saved"
    fake.switch(saved=str(saved), save_lines=3)
    policy = dataclasses.replace(FAST, stop_grace=20.0, save_stall=20.0, save_limit=20.0)
    with lease(fake.spec(), policy=policy) as held:
        assert ask(held.endpoint)
    assert stop_server(fake.directory(), policy=policy)
    assert saved.exists()


def test_key_on_a_command_line_is_told_once(fake: Fake, caplog: pytest.LogCaptureFixture):
    """A binary that is not a Python script gets a key that others can read, with a warning."""
    wrap(fake, 'exec $REAL "$@"')
    for _ in range(2):
        with lease(fake.spec(), policy=FAST) as held:
            assert ask(held.endpoint)
    told = [r.getMessage() for r in caplog.records if "list of processes" in r.getMessage()]
    assert len(told) == 1
    assert str(fake.binary) in told[0]


def test_servers_are_stopped_at_the_same_time(fake: Fake, tmp_path: Path):
    """`stop --all` takes as long as the slowest server, not as long as all together."""
    fake.switch(save_gate=fake.gate("save"))
    specs = [fake.spec(server_args=("--max-tokens", str(n))) for n in (1, 2, 3)]
    policy = dataclasses.replace(FAST, stop_grace=30.0, save_stall=30.0, save_limit=30.0)
    for spec in specs:
        with lease(spec, policy=policy):
            pass
    directories = [directory_of(spec) for spec in specs]
    stops = Background(lambda: list(stop_servers(directories, policy=policy)))

    def are_stopping() -> bool:
        states = [read_state(directory.state) for directory in directories]
        return all(state is not None and state.phase == "stopping" for state in states)

    eventually(are_stopping, "all stops to begin before one has ended")
    fake.open_gate("save")
    outcomes = stops.result()
    assert outcomes is not None
    assert {outcome for _, outcome in outcomes} == {True}
    assert running_servers() == []


UNKILLABLE = """
real = os.killpg
def deaf(group, number):
    if number == 0 or os.path.exists({gate!r}):
        return real(group, number)
os.killpg = deaf
"""


def test_server_that_does_not_die_is_not_reported_as_stopped(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A process that is stuck in the kernel keeps its memory: stop and next call say so."""
    gate = tmp_path / "mortal"
    python = altered_supervisor(tmp_path, UNKILLABLE.format(gate=str(gate)))
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    fake.switch(ignore_sigint=True)
    policy = dataclasses.replace(FAST, kill_grace=0.3, stop_grace=0.2)
    with lease(fake.spec(), policy=policy):
        server = fake.state().server
    assert server is not None
    for watcher in psutil.Process(server.pid).children():  # it would not die of them either
        watcher.kill()
    try:
        with pytest.raises(ServerError, match="does not end, not even after SIGKILL"):
            stop_server(fake.directory(), policy=policy)
        with pytest.raises(ServerError, match="does not end"):
            lease(fake.spec(), policy=policy).__enter__()
        state = fake.state()
        assert state.phase == "stopping"
        assert state.reservation > 0
    finally:
        gate.touch()
    fake.wait_until_unsupervised()
    assert fake.state().phase == "stopped"
    with lease(fake.spec(), policy=policy) as held:
        assert ask(held.endpoint)


FIRST_PROCESS = """
import os, time
from contextlib import suppress
import psutil
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.server import Policy, ServerSpec, directory_of, lease, stop_server
from langchain_car_vllm.server.state import read_state
spec, policy = ServerSpec.from_dict({spec!r}), Policy.from_dict({policy!r})
directory = directory_of(spec)

def zombies():
    return [p for p in psutil.process_iter() if p.status() == psutil.STATUS_ZOMBIE]

for ending in ("stop", "server", "supervisor"):
    with lease(spec, policy=policy):
        state = read_state(directory.state)
        print(len(zombies()))
        if ending != "stop":
            os.kill(getattr(state, ending).pid, 9)
    with suppress(CarVllmError):
        stop_server(directory, policy=policy)
give_up_at = time.monotonic() + 30
while zombies() and time.monotonic() < give_up_at:
    with lease(spec, policy=policy):
        pass
    time.sleep(0.05)
print(len(zombies()))
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces need root on Linux"
)
def test_first_process_of_a_container_is_left_no_zombies(fake: Fake):
    """A program that reaps nobody, alone in its container, collects no dead, however they died."""
    code = FIRST_PROCESS.format(spec=fake.spec().to_dict(), policy=FAST.to_dict())
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["0"] * 4, done
