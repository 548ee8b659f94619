"""A home that this user may only read, or that `sudo` made root's: nothing is taken for a no."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.support import FAST, Fake, can_mount
from unit.cli.conftest import Cli, command

from langchain_car_vllm.cli import doctor, machine_checks
from langchain_car_vllm.cli.servers import closed_servers
from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.paths import make_private, managed_root
from langchain_car_vllm.runtime import metal_question
from langchain_car_vllm.server import lease, running_servers
from langchain_car_vllm.server.directory import make_checked, run_state_error, server_directory
from langchain_car_vllm.server.locks import is_file_held, opened_lock, try_exclusive

_STRANGER = 12345
_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


def read_only(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `car-vllm` where the home may only be read, as in a sandbox."""
    inside = ["unshare", "-m", "sh", "-c", _READ_ONLY, str(home), *command(*arguments)]
    return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)


@can_mount
def test_servers_of_a_read_only_home_are_seen(fake: Fake, home: Path):
    """They are listed, their logs printed, and what cannot be done says why."""
    with lease(fake.spec(), policy=FAST):
        pass
    model = str(fake.model)
    listed = read_only(home, "ps")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert model in listed.stdout
    assert "Loading model" in read_only(home, "logs", model).stdout
    for arguments in (("stop", "--all"), ("stop", model)):
        stopped = read_only(home, *arguments)
        assert stopped.returncode == 1
        assert "Read-only file system" in stopped.stderr
        assert "sandbox" in stopped.stderr
    checked = read_only(home, "doctor").stdout
    assert "servers: 1 running" in checked
    assert "chown" not in checked
    assert running_servers()


@pytest.fixture
def users_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of a user who is not this one; everybody may go there."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    os.chown(folder, _STRANGER, _STRANGER)
    monkeypatch.setenv("HOME", str(folder))
    yield folder
    os.seteuid(0)
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize(
    "make",
    [
        lambda: server_directory("a" * 16).create(),
        lambda: make_private(managed_root()),
        lambda: make_checked(managed_root().parent / "run" / "gateways"),
    ],
    ids=["server", "runtime", "gateway"],
)
@pytest.mark.parametrize("exists", [False, True])
def test_sudo_makes_nothing_in_the_home_of_its_caller(
    users_home: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], None], exists: bool
):
    """`sudo` keeps HOME on a Mac, and what root made there would shut the user out."""
    if exists:
        (users_home / ".car").mkdir(mode=0o700)
        os.chown(users_home / ".car", _STRANGER, _STRANGER)
    monkeypatch.setenv("SUDO_UID", str(_STRANGER))
    with pytest.raises(StateDirectoryError) as caught:
        make()
    assert "without `sudo`" in str(caught.value.hint)
    assert not list(users_home.glob(".car/*"))
    metal_question._write({})
    assert running_servers() == []


@needs_root
def test_root_leaves_nothing_in_a_folder_of_another_user(
    users_home: Path, monkeypatch: pytest.MonkeyPatch
):
    """The way there is looked at before anything is made; a home that root was given is root's."""
    server_directory("a" * 16).create()
    shutil.rmtree(users_home / ".car")
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setenv("CAR_HOME", str(users_home / "car"))
    nobody = pwd.getpwnam("nobody")  # who has an account, so that it may be somebody
    os.chown(users_home, nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(StateDirectoryError, match="belongs to another user"):
        server_directory("a" * 16).create()
    assert not list(users_home.iterdir())


def make_folders(home: Path, *, of_root: str) -> None:
    """Make the user's folders, and from one part on what are root's."""
    for part in (".car", ".car/run", ".car/run/vllm-py"):
        (home / part).mkdir(mode=0o700)
        if not part.startswith(of_root):
            os.chown(home / part, _STRANGER, _STRANGER)


@needs_root
def test_root_keeps_its_own_servers_under_sudo(home: Path, monkeypatch: pytest.MonkeyPatch):
    """`sudo -H` has a home of root's."""
    monkeypatch.setenv("SUDO_UID", str(_STRANGER))
    server_directory("a" * 16).create()
    assert (home / ".car" / "run").is_dir()


@needs_root
@pytest.mark.parametrize("part", [".car", ".car/run", ".car/run/vllm-py"])
def test_what_root_made_is_told_with_the_cure(users_home: Path, part: str):
    """Wherever the system refuses it, the first folder of root's is named, and how to get it."""
    make_folders(users_home, of_root=part)
    os.seteuid(_STRANGER)
    cure = f'run `sudo chown -R "$USER" {users_home / part}`'
    with pytest.raises(StateDirectoryError) as caught:
        running_servers()
    assert caught.value.hint == f"`{users_home / part}` belongs to root: {cure}"
    (result,) = doctor._run([("home", machine_checks._home)])
    assert result.hint is not None
    assert cure in result.hint


def test_a_refusal_elsewhere_is_none_of_the_run_state(home: Path):
    """Its cure is not that of `CAR_HOME`."""
    assert run_state_error(PermissionError(13, "no", str(home / "models"))) is None
    assert run_state_error(PermissionError(13, "no", str(home / ".car" / "run"))) is not None
    assert run_state_error(PermissionError(13, "no")) is None


@needs_root
def test_a_folder_of_ones_own_is_opened_by_its_mode(users_home: Path):
    """Nobody is told to take what is theirs."""
    (users_home / ".car").mkdir(mode=0o500)
    os.chown(users_home / ".car", _STRANGER, _STRANGER)
    os.seteuid(_STRANGER)
    with pytest.raises(StateDirectoryError) as caught:
        server_directory("a" * 16).create()
    os.seteuid(0)
    assert caught.value.hint == f"run `chmod -R u+rwX {users_home / '.car'}`"


@needs_root
def test_a_key_that_may_not_be_read_is_no_server_that_does_not_run(
    users_home: Path, cli_here: Cli, monkeypatch: pytest.MonkeyPatch
):
    """No listing is empty and no stop succeeds because of what it may not see."""
    closed = server_directory("b" * 16).path
    make_folders(users_home, of_root=str(closed))
    closed.mkdir(mode=0o700)
    os.seteuid(_STRANGER)
    error = closed_servers()
    assert error is not None
    assert "chown" in str(error.hint)
    for arguments in (("ps",), ("ps", "--json"), ("stop", "--all"), ("stop", "org/x"), ("logs",)):
        done = cli_here(*arguments)
        assert done.returncode == 1, arguments
        assert str(closed) in done.stderr


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_lock_is_seen_where_its_file_may_only_be_read(tmp_path: Path, mode: str):
    """A look needs no right to write."""
    path = tmp_path / "lock"
    with opened_lock(path) as lock:
        path.chmod(0o400 if mode == "r" else 0o600)
        assert not is_file_held(path)
        assert try_exclusive(lock)
        assert is_file_held(path)
