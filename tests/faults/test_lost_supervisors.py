"""Supervisors that never come to report: replaced where that helps, else told with the cause."""

import dataclasses
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from faults.support import FAST, PATIENCE, Fake, altered_supervisor, ask

from langchain_car_vllm.errors import ConfigurationError, ServerStartError
from langchain_car_vllm.server import lease

FATAL_WRITE = """
opened = os.open
def open_or_die(path, *rest, **named):
    if str(path).endswith(".state.json.new") and not os.path.exists({once!r}):
        os.close(opened({once!r}, os.O_CREAT | os.O_WRONLY))
        os.kill(os.getpid(), 9)
    return opened(path, *rest, **named)
os.open = open_or_die
"""


def test_supervisor_killed_before_its_first_word_is_replaced(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A supervisor that dies before it wrote anything costs one more attempt."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; kill -9 $$; }}\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert (tmp_path / "once").exists()


def test_supervisor_killed_at_its_first_write_is_replaced(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A supervisor that dies with its lock held and no state written costs one more attempt."""
    once = tmp_path / "once"
    python = altered_supervisor(tmp_path, FATAL_WRITE.format(once=str(once)))
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 1
    assert once.exists()
    assert len(list(fake.directory().path.glob("life-*"))) == 1


def test_supervisor_that_never_reports_is_an_error_with_its_last_words(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A Python that cannot run the supervisor is told with what it said."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho this Python is broken >&2\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    with pytest.raises(ServerStartError, match="this Python is broken") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert caught.value.exit_code == 7


def test_frozen_program_is_told_which_variable_to_set(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """Without a Python of its own a program needs `CAR_VLLM_PYTHON`."""
    monkeypatch.delenv("CAR_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ConfigurationError, match="CAR_VLLM_PYTHON"):
        lease(fake.spec(), policy=FAST).__enter__()


def test_program_whose_environment_was_removed_is_told_to_restart(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A notebook outlives `rm -r .venv`, or one that was made anew for another Python."""
    # What has no packages of its own.
    monkeypatch.setenv("CAR_VLLM_PYTHON", sys._base_executable)
    package, psutil = (Path(find_spec(n).origin).parent for n in ("langchain_car_vllm", "psutil"))
    site = tmp_path / "site"
    for folder in (package, psutil):
        shutil.copytree(folder, site / folder.name)
    code = f"""
import os, sys
sys.path.insert(0, {str(site)!r})
from langchain_car_vllm.server import ServerSpec, lease
os.rename({str(site)!r}, {str(tmp_path / "gone")!r})
try:
    lease(ServerSpec.from_dict({fake.spec().to_dict()!r})).__enter__()
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert f"`{site}/langchain_car_vllm/__init__.py` is gone" in done.stdout
    assert "hint: restart this program" in done.stdout
    assert done.stdout.startswith("ServerStartError")


DIES_AFTER_ITS_FIRST_STATE = """
from langchain_car_vllm.server.supervisor import lifecycle
begin = lifecycle.Supervisor.__init__
def begin_and_die(*arguments):
    begin(*arguments)
    with open({tally!r}, "a") as file:
        file.write("x")
    if os.path.getsize({tally!r}) <= {times}:
        os.kill(os.getpid(), 9)
lifecycle.Supervisor.__init__ = begin_and_die
"""


@pytest.mark.parametrize("times", [2, 3])
def test_supervisor_lost_between_its_state_and_its_report_counts_once(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
):
    """Two losses are mended, as everywhere; the third is told."""
    code = DIES_AFTER_ITS_FIRST_STATE.format(tally=str(tmp_path / "tally"), times=times)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, code)))
    if times > 2:
        with pytest.raises(ServerStartError, match="lost 3 times"):
            lease(fake.spec(), policy=FAST).__enter__()
    else:
        with lease(fake.spec(), policy=FAST) as held:
            assert ask(held.endpoint)
            assert held.endpoint.generation == 3


def test_a_start_that_a_sandbox_leaves_in_the_dark_says_so(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A supervisor that may ask nothing about processes is not a bug, and does not wait forever."""
    denials = ["status", "net_connections", "create_time", "cpu_times", "cmdline", "children"]
    code = (
        "import psutil\n"
        "def deny(process, *_, **__): raise psutil.AccessDenied(process.pid)\n"
        f"for name in {denials!r}: setattr(psutil.Process, name, deny)"
    )
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, code)))
    with (
        pytest.raises(ServerStartError, match="does not show which process listens on its port"),
        lease(fake.spec(), policy=dataclasses.replace(FAST, load_stall=1.0)),
    ):
        pass


@pytest.mark.parametrize("denied", ["socket.socket.bind", "port.is_free"])
def test_a_start_and_an_end_that_a_sandbox_denies_a_port(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str
):
    """The first is told as what it is, the second leaves nobody and says that it is over."""
    code = (
        "import socket\n"
        "from langchain_car_vllm.server.supervisor import load as port\n"
        "def deny(*_): raise PermissionError(1, 'Operation not permitted')\n"
        f"{denied} = deny"
    )
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, code)))
    if denied == "port.is_free":
        with lease(fake.spec(keep_alive=0.0), policy=FAST):
            pass
        fake.wait_until_unsupervised()
        assert fake.state().phase == "stopped"
        return
    with (
        pytest.raises(ServerStartError, match="no port on 127") as caught,
        lease(fake.spec(), policy=FAST),
    ):
        pass
    assert "sandbox" in (caught.value.hint or "")


def test_a_sandbox_that_lists_no_processes_keeps_no_server_from_its_life(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A supervisor knows its own server, and ends it."""
    code = (
        "import psutil\n"
        "def deny(*_, **__): raise PermissionError(1, 'Operation not permitted')\n"
        "psutil.pids = psutil._ppid_map = deny"
    )
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, code)))
    with lease(fake.spec(keep_alive=0.0), policy=FAST) as held:
        assert ask(held.endpoint)
    fake.wait_until_unsupervised()
    state = fake.state()
    assert (state.phase, state.reason, state.error) == ("stopped", "idle", None)
