"""No orphan, whatever is killed, and no stranger is ever signalled."""

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
    altered_supervisor,
    ask,
    eventually,
    processes_of,
)

from langchain_car_vllm.errors import ServerCrashedError, StateDirectoryError
from langchain_car_vllm.server import lease, lost_servers, running_servers, stop_server
from langchain_car_vllm.server.process import Identity, group_members
from langchain_car_vllm.server.state import State, write_state


def nobody_left(fake: Fake) -> None:
    eventually(lambda: not processes_of(fake.root), "the last process to end")


def test_server_dies_with_its_supervisor(fake: Fake):
    """SIGKILL of a ready supervisor ends its server, and the next call starts another."""
    with lease(fake.spec(), policy=FAST) as held:
        os.kill(fake.state().supervisor.pid, signal.SIGKILL)
        assert isinstance(eventually(held.explain, "the death"), ServerCrashedError)
        nobody_left(fake)
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 2
        assert ask(held.endpoint)


def test_supervisor_killed_takes_the_whole_group_along(fake: Fake):
    """Processes that the server started die with the supervisor as well."""
    fake.switch(grandchild=True)
    with lease(fake.spec(), policy=FAST):
        state = fake.state()
    assert state.server is not None
    assert len(list(group_members(state.server.pid))) > 1
    os.kill(state.supervisor.pid, signal.SIGKILL)
    eventually(lambda: not list(group_members(state.server.pid)), "the last of the group")


@pytest.mark.parametrize("killed", [None, "server", "supervisor"])
@pytest.mark.parametrize("successor", ["start", "stop"])
@pytest.mark.parametrize("is_python", [True, False])
def test_pictures_of_requests_go_with_the_server(
    fake: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    killed: str | None,
    successor: str,
    is_python: bool,
):
    """However it ends: what was killed with its supervisor is removed by who comes next.

    The $TMPDIR of who called first may go with his session, that of who cleans up is another.
    """
    session = tmp_path / "session"
    session.mkdir()
    monkeypatch.setenv("TMPDIR", str(session))
    fake.switch(media=True)
    if not is_python:
        real = fake.binary.rename(fake.binary.with_name("real"))
        fake.binary.write_text(f'#!/bin/sh\nexec {sys.executable} {real} "$@"\n')
        fake.binary.chmod(0o755)
    folder = fake.directory().temporary
    with lease(fake.spec(), policy=FAST):
        [left] = folder.glob("*.png")
        assert folder.stat().st_mode & 0o777 == 0o700
    session.rmdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if killed is not None:
        os.kill(getattr(fake.state(), killed).pid, signal.SIGKILL)
        nobody_left(fake)
    fake.switch()
    if successor == "stop" or killed is None:
        stop_server(fake.directory(), policy=FAST)
    else:
        lease(fake.spec(), policy=FAST).__enter__()
    assert not left.exists()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["TMPDIR", "TMP"])
def test_what_mlx_compiles_outlives_the_session_of_who_called_first(
    fake: Fake, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """Its folder serves everybody, and below the system's another user may own what MLX made."""
    session = tmp_path / "session"
    session.mkdir()
    monkeypatch.setenv(name, str(session))
    kernels = home / ".car" / "run" / "kernels"
    shown = "import os, sys\nprint('TMPDIR', os.environ.get('TMPDIR'), file=sys.stderr)\n"
    first, rest = fake.binary.read_text().split("\n", 1)
    fake.binary.write_text(f"{first}\n{shown}{rest}")
    for _ in range(2):
        with lease(fake.spec(), policy=FAST):
            assert f"TMPDIR {kernels}\n" in fake.directory().log.read_text()
        assert kernels.stat().st_mode & 0o777 == 0o700
        stop_server(fake.directory(), policy=FAST)
        (kernels / "mlx").touch()
    assert (kernels / "mlx").exists()


def test_server_that_dies_takes_what_it_started_along(fake: Fake):
    """A crash leaves nobody of the server's group behind."""
    fake.switch(grandchild=True)
    with lease(fake.spec(), policy=FAST):
        server = fake.state().server
    assert server is not None
    assert len(list(group_members(server.pid))) > 1
    os.kill(server.pid, signal.SIGKILL)
    fake.wait_until_unsupervised()
    assert not list(group_members(server.pid))


def test_supervisor_killed_while_loading_is_replaced(fake: Fake):
    """The waiting call does not notice that its supervisor was killed during the load."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__().endpoint)
    state = fake.wait_for_phase("load")
    eventually(fake.starts, "the server")
    os.kill(state.supervisor.pid, signal.SIGKILL)
    eventually(lambda: len(fake.starts()) == 2, "the second start")
    fake.open_gate("load")
    endpoint = call.result()
    assert endpoint is not None
    assert endpoint.generation == 2


def test_client_and_supervisor_killed_together_leave_nobody(fake: Fake):
    """Both killed while loading: the server's death pipe ends it."""
    fake.switch(load_gate=fake.gate("load"))
    client = ClientProcess(fake)
    assert client.read() == "began"
    state = fake.wait_for_phase("load")
    eventually(fake.starts, "the server")
    os.kill(state.supervisor.pid, signal.SIGKILL)
    client.kill()
    nobody_left(fake)


def test_supervisor_killed_while_draining_leaves_nobody(fake: Fake):
    """A supervisor that dies in the middle of a stop takes its server along."""
    fake.switch(save_lines=100)
    with lease(fake.spec(), policy=FAST):
        pass
    stopping = Background(lambda: stop_server(fake.directory(), policy=FAST))
    state = fake.wait_for_phase("stopping")
    os.kill(state.supervisor.pid, signal.SIGKILL)
    assert stopping.result()
    nobody_left(fake)
    assert fake.state().phase == "stopped"


def stale(fake: Fake, server: Identity, **changes: object) -> State:
    """Leave the state of a supervisor that is gone."""
    directory = fake.directory()
    directory.create()
    with lease(fake.spec(), policy=FAST):
        pass
    stop_server(directory, policy=FAST)
    state = dataclasses.replace(fake.state(), phase="ready", server=server, **changes)
    write_state(directory.state, state)
    return state


@pytest.fixture
def bystander():
    """A process that is none of ours."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "bystander"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    yield process
    process.communicate()


def test_stale_state_with_a_foreign_pid_signals_nobody(fake: Fake, bystander: subprocess.Popen):
    """A recorded pid that is now somebody else's is left alone, by start and by stop."""
    stale(fake, Identity(bystander.pid, "our-nonce"))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    stop_server(fake.directory(), policy=FAST)
    assert bystander.poll() is None


def test_reused_pid_signals_nobody(fake: Fake, bystander: subprocess.Popen):
    """The same pid with another marker is another process, even where a part of it fits."""
    stale(fake, Identity(bystander.pid, "sys.stdin"))
    stop_server(fake.directory(), policy=FAST)
    assert bystander.poll() is None


def test_state_of_another_boot_signals_nobody(fake: Fake, bystander: subprocess.Popen):
    """After a reboot a pid means nothing, even where everything else fits."""
    stale(fake, Identity(bystander.pid, "bystander"), boot_id="another")
    with lease(fake.spec(), policy=FAST):
        pass
    stop_server(fake.directory(), policy=FAST)
    assert bystander.poll() is None


def test_lost_server_is_found_by_identity_and_ended(fake: Fake):
    """A server whose supervisor is gone and that still lives is ended by the next start."""
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "our-nonce"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    stale(fake, Identity(orphan.pid, "our-nonce"))
    with lease(fake.spec(), policy=FAST):
        assert orphan.wait(5) == -signal.SIGKILL
    assert orphan.stdin is not None
    orphan.stdin.close()


@pytest.mark.parametrize("how", ["stop", "call"])
def test_copy_of_a_home_ends_no_server_of_the_original(
    fake: Fake, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    """A backup that is looked into says that a server runs, and nobody supervises it there."""
    copy = tmp_path / "copy"
    with lease(fake.spec(), policy=FAST) as held:
        shutil.copytree(home / ".car", copy)
        with monkeypatch.context() as there:
            there.setenv("CAR_HOME", str(copy))
            [(found, _)] = lost_servers()
            if how == "stop":
                assert stop_server(found, policy=FAST)
            with lease(fake.spec(), policy=FAST) as other:
                assert other.endpoint.base_url != held.endpoint.base_url
            fake.stop()
        assert ask(held.endpoint)
        assert held.explain() is None


REMOTE = """
import psutil
mounts = psutil.disk_partitions
def remote(all=False):
    return [mount._replace(fstype="nfs4") for mount in mounts(all)]
psutil.disk_partitions = remote
"""


def test_state_of_another_host_is_an_error_that_says_what_to_set(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A home on a network that two machines share cannot hold the run state."""
    stale(fake, Identity(1, "x"), host="another-machine", machine="x", boot_id="y")
    monkeypatch.setattr(psutil, "disk_partitions", psutil.disk_partitions)
    exec(REMOTE, {})
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, REMOTE)))
    assert not stop_server(fake.directory(), policy=FAST)
    with pytest.raises(StateDirectoryError, match="another-machine") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert fake.state().host == "another-machine"
    assert "CAR_HOME" in (caught.value.hint or "")


def moved_in(fake: Fake) -> None:
    """Leave the state of a server that ran when the disk of another Mac was copied."""
    stale(fake, Identity(1, "x"), host="old-mac.local", machine="x", boot_id="y")


def test_state_that_came_with_a_copied_disk_is_lost(fake: Fake):
    """On a disk of this machine's own nobody else can be running: the next call starts anew."""
    moved_in(fake)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert fake.state().host != "old-mac.local"


def test_stop_mends_what_came_with_a_copied_disk(fake: Fake):
    """A stop says in the old machine's place that the server is stopped."""
    moved_in(fake)
    assert [state.host for _, state in lost_servers()] == ["old-mac.local"]
    assert stop_server(fake.directory(), policy=FAST)
    assert fake.state().phase == "stopped"
    assert not lost_servers()


def test_stale_ready_state_never_reaches_a_stranger_on_the_port(fake: Fake):
    """A stranger that listens on a dead server's port sees neither key nor prompt."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    seen = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args):
            pass

    stranger = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    serving = Background(lambda: stranger.serve_forever(poll_interval=0.01))
    stale(fake, Identity(1, "x"), port=stranger.server_port, api_key="secret")
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert running_servers()
    stranger.shutdown()
    serving.result()
    stranger.server_close()
    assert not seen


def test_supervisor_outlives_the_launch_script_it_came_with(fake: Fake):
    """The server is started from a copy: the package may be gone by then."""
    with lease(fake.spec(), policy=FAST):
        line = " ".join(processes_of(Path(fake.directory().path))[0].cmdline())
    assert str(fake.directory().launcher) in line or "supervisor" in line
