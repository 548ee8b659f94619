"""Where the run state lies, and what happens when it cannot lie there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from faults.support import FAST, Fake, ask, can_mount, eventually, fill

from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.cli.machine_checks import _models, _servers
from langchain_car_vllm.errors import ConfigurationError, StateDirectoryError
from langchain_car_vllm.paths import car_home, make_private, managed_root
from langchain_car_vllm.runtime import metal_question
from langchain_car_vllm.server import lease, running_servers
from langchain_car_vllm.server.client.process_lease import process_lease_of
from langchain_car_vllm.server.directory import (
    closed_directories,
    server_directories,
    server_directory,
)
from langchain_car_vllm.server.locks import opened_lock, try_shared
from langchain_car_vllm.server.state import read_any_state
from langchain_car_vllm.support.backups import TAG


def test_state_is_private(fake: Fake):
    """Nobody but the user can read key, log or state."""
    with lease(fake.spec(), policy=FAST):
        directory = fake.directory()
        assert directory.path.stat().st_mode & 0o777 == 0o700
        for path in (directory.state, directory.log, directory.lease_lock):
            assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_said_stays_out_of_backups(fake: Fake):
    """Logs, saved prompts and pictures of all servers, by one tag."""
    with lease(fake.spec(), policy=FAST):
        assert (fake.directory().path.parent / TAG).exists()


def test_car_home_moves_the_state(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`CAR_HOME` holds the run state."""
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "elsewhere"))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert fake.directory().path.is_relative_to(tmp_path / "elsewhere")


def test_relative_car_home_is_refused(monkeypatch: pytest.MonkeyPatch):
    """`CAR_HOME` must be absolute."""
    monkeypatch.setenv("CAR_HOME", "here")
    with pytest.raises(ConfigurationError, match="absolute"):
        car_home()


@pytest.mark.parametrize("value", ["", None])
def test_without_home_a_private_temporary_folder_is_used(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
):
    """HOME unset or empty: a folder of the user's own below the temporary one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if value is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", value)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert car_home() == tmp_path / f"car-vllm-{os.getuid()}"
    assert fake.directory().path.is_relative_to(car_home())
    assert car_home().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "squat",
    [
        lambda path: path.symlink_to(path.parent),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        Path.touch,
        os.mkfifo,
        lambda path: (path.mkdir(), path.chmod(0o777)),
        lambda path: shutil.rmtree(path.parent),
    ],
    ids=["link", "dangling link", "file", "pipe", "open folder", "no temporary folder"],
)
def test_foreign_temporary_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squat: Callable[[Path], object]
):
    """Whatever somebody else has put in its place is not used, and told in one sentence."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("HOME")
    squat(tmp_path / "tmp" / f"car-vllm-{os.getuid()}")
    with pytest.raises(StateDirectoryError) as refused:
        car_home()
    assert "CAR_HOME" in (refused.value.hint or "")


def test_home_that_is_a_file_says_what_to_set(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A state folder that cannot be made is an error that names it and CAR_HOME."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "file"))
    with pytest.raises(StateDirectoryError, match="Not a directory") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert "CAR_HOME" in (caught.value.hint or "")


@can_mount
def test_read_only_home_says_so(fake: Fake, mount, monkeypatch: pytest.MonkeyPatch):
    """A read-only state folder is told as such."""
    monkeypatch.setenv("CAR_HOME", str(mount("ro,size=1m")))
    with pytest.raises(StateDirectoryError, match="Read-only"):
        lease(fake.spec(), policy=FAST).__enter__()


@can_mount
def test_full_home_says_so(fake: Fake, mount, monkeypatch: pytest.MonkeyPatch):
    """A full disk is told as such, with what to do."""
    folder = mount("size=64k")
    monkeypatch.setenv("CAR_HOME", str(folder))
    fake.directory().create()
    fill(folder)
    with pytest.raises(StateDirectoryError, match="No space left") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert "disk space" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_directory_of_another_user_is_refused(fake: Fake):
    """A state folder that belongs to somebody else is not used."""
    directory = fake.directory()
    directory.create()
    os.chown(directory.path, 12345, 12345)
    with pytest.raises(StateDirectoryError, match="another user"):
        lease(fake.spec(), policy=FAST).__enter__()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_home_of_another_user_says_so(fake: Fake):
    """A home that this user may not enter is an error that names CAR_HOME, not a traceback."""
    os.seteuid(12345)
    try:
        with pytest.raises(StateDirectoryError, match="Permission denied") as caught:
            lease(fake.spec(), policy=FAST).__enter__()
        with pytest.raises(StateDirectoryError, match="Permission denied"):
            running_servers()
    finally:
        os.seteuid(0)
    assert "CAR_HOME" in (caught.value.hint or "")


def test_filesystem_without_locks_says_what_to_set(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """A network home that knows no `flock` is an error that names CAR_HOME."""
    import errno
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StateDirectoryError, match="No locks available") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert "CAR_HOME" in (caught.value.hint or "")


PARTS = [".", "run", "run/vllm-py", "run/vllm-py/KEY", "run/vllm-py/KEY/clients"]


def part_of(fake: Fake, home: Path, part: str) -> Path:
    return home / part.replace("KEY", fake.directory().key)


@pytest.mark.parametrize("mask", [0, 0o002, 0o077, 0o177, 0o777])
def test_every_folder_is_private_whatever_the_umask(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
):
    """Nobody else can look into any part of the way to the state."""
    (tmp_path / "new").mkdir()
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "new" / "home"))
    before = os.umask(mask)
    try:
        fake.directory().create()
        make_private(managed_root())
    finally:
        os.umask(before)
    for part in PARTS:
        mode = part_of(fake, tmp_path / "new" / "home", part).stat().st_mode
        assert mode & 0o777 == 0o700, part


@pytest.mark.parametrize("first", ["state", "runtime", "notes"])
def test_whoever_comes_first_makes_the_home_private(fake: Fake, home: Path, first: str):
    """With a umask that lets a group write, an install may come before the first server."""
    before = os.umask(0o002)
    try:
        if first == "runtime":
            make_private(managed_root())
        if first == "notes":
            metal_question._write({})
            assert (home / ".car" / "run" / "metal.json").exists()
        fake.directory().create()
    finally:
        os.umask(before)
    folders = [home / ".car", *(p for p in (home / ".car").rglob("*") if p.is_dir())]
    assert [folder for folder in folders if folder.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("part", PARTS)
def test_folder_that_others_may_write_to_is_refused(fake: Fake, home: Path, part: str, mode: int):
    """Whoever may put files there could put in theirs; the hint is the command that ends it."""
    fake.directory().create()
    folder = part_of(fake, home / ".car", part)
    folder.chmod(mode)
    with pytest.raises(StateDirectoryError, match="others may write to it") as caught:
        fake.directory().create()
    assert caught.value.hint == f"run `chmod go-w {folder}`"
    subprocess.run(caught.value.hint.removeprefix("run `").removesuffix("`").split(), check=True)
    fake.directory().create()


@pytest.mark.parametrize("depth", [1, 2])
def test_home_that_others_may_exchange_is_refused(
    fake: Fake, reachable: Path, monkeypatch: pytest.MonkeyPatch, depth: int
):
    """Whoever may write to a folder above it can put another `CAR_HOME` in its place."""
    home = reachable / "shared" / "folder" / "car"
    monkeypatch.setenv("CAR_HOME", str(home))
    fake.directory().create()
    place = home.parents[depth - 1]
    place.chmod(0o777)
    with pytest.raises(StateDirectoryError, match=f"others may write to `{place}`") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert caught.value.hint == f"run `chmod go-w {place}`"
    place.chmod(0o1777)
    fake.directory().create()


def test_what_is_made_above_the_home_is_not_for_all_to_write_to(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A umask that lets everybody write makes no folder that is refused afterwards."""
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "new" / "folder" / "car"))
    before = os.umask(0)
    try:
        fake.directory().create()
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755


def test_a_lock_file_that_became_a_link_is_not_the_one_that_was_opened(fake: Fake):
    """Another folder could lead to the former one's files, and hold a state of its own."""
    directory = fake.directory()
    former = process_lease_of(directory)
    directory.lease_lock.rename(directory.lease_lock.with_name("aside"))
    directory.lease_lock.symlink_to("aside")
    assert not former.is_current()
    with pytest.raises(StateDirectoryError, match="symbolic links"):
        process_lease_of(directory)
    directory.lease_lock.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
@pytest.mark.parametrize(("owner", "is_believed"), [(12345, True), (0, True), (54321, False)])
def test_a_state_that_another_user_wrote_is_not_believed(owner: int, is_believed: bool):
    """It would name a server that key and prompt are sent to."""
    golden = Path(__file__).parents[1] / "golden" / "protocol-1-55e9e3f" / "ready.json"
    with tempfile.TemporaryDirectory(dir="/tmp") as reachable:
        Path(reachable).chmod(0o755)
        state = Path(shutil.copy(golden, reachable))
        state.chmod(0o644)
        os.chown(state, owner, owner)
        os.seteuid(12345)
        try:
            assert (read_any_state(state) is not None) is is_believed
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("kind", ["exfat", "msdos"])
def test_a_disk_without_permissions_is_told(
    fake: Fake, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """On disks made for Windows all is everybody's, and no `chmod` changes that."""
    fake.directory().create()
    (home / ".car").chmod(0o777)
    disk = SimpleNamespace(mountpoint=str(home), fstype=kind, opts="rw,local,noowners")
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [disk])
    with pytest.raises(StateDirectoryError, match="others may write to it") as caught:
        fake.directory().create()
    assert caught.value.hint == (
        f"its disk ({kind}) does not store permissions: set CAR_HOME to one on another disk"
    )


def test_home_whose_disk_is_gone_is_told(fake: Fake, home: Path):
    """A `~/.car` that was moved to another disk is no file that is in the way."""
    (home / ".car").symlink_to("/Volumes/Models/car")
    with pytest.raises(StateDirectoryError, match="is a link to `/Volumes/Models/car`") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert caught.value.hint == "connect the disk, or remove the link to it"


@can_mount
def test_models_that_are_only_read_are_a_warning(
    mount: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    """A shared folder of models serves those that are there."""
    folder = mount("size=1m")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    remount = ["mount", "-o", "remount,ro", str(folder)]
    subprocess.run(remount, check=True)
    with pytest.raises(Finding, match="cannot be written to") as caught:
        _models()
    assert not isinstance(caught.value, Warned)
    subprocess.run([*remount[:2], "remount,rw", str(folder)], check=True)
    (folder / "models--org--tiny").mkdir()
    subprocess.run(remount, check=True)
    with pytest.raises(Warned, match="models that are there can be served"):
        _models()


@pytest.mark.parametrize("part", PARTS[1:])
def test_folder_that_is_a_link_is_refused(fake: Fake, home: Path, tmp_path: Path, part: str):
    """Nothing is written where a link leads to."""
    fake.directory().create()
    precious = tmp_path / "precious"
    precious.mkdir()
    folder = part_of(fake, home / ".car", part)
    folder.rename(folder.with_name("aside"))
    folder.symlink_to(precious)
    with pytest.raises(StateDirectoryError, match="symbolic link"):
        lease(fake.spec(), policy=FAST).__enter__()
    assert not list(precious.iterdir())


def test_car_home_itself_may_be_a_link(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's own link to another disk is followed."""
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "link"))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
@pytest.mark.parametrize("part", PARTS[1:])
def test_part_of_the_way_that_belongs_to_another_is_refused(fake: Fake, home: Path, part: str):
    """Its owner could exchange what lies below."""
    fake.directory().create()
    os.chown(part_of(fake, home / ".car", part), 12345, 12345)
    with pytest.raises(StateDirectoryError, match="another user"):
        fake.directory().create()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_key_that_sudo_made_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch,
):
    """Listings leave out what this user may not read, and `doctor` names it with the cure."""
    reachable = tempfile.mkdtemp(dir="/tmp")
    Path(reachable).chmod(0o755)
    os.chown(reachable, 12345, 12345)
    monkeypatch.setenv("CAR_HOME", f"{reachable}/home")
    os.seteuid(12345)
    try:
        own = server_directory("a" * 16)
        own.create()
        own.state.write_text("{}")
    finally:
        os.seteuid(0)
    foreign = server_directory("b" * 16)
    foreign.path.mkdir(mode=0o700)
    foreign.state.write_text("{}")
    os.seteuid(12345)
    try:
        assert [d.key for d in server_directories()] == [own.key]
        assert [d.key for d in closed_directories()] == [foreign.key]
        assert running_servers() == []
        with pytest.raises(ConfigurationError, match=foreign.key) as caught:
            _servers()
        assert "chown" in str(caught.value.hint)
    finally:
        os.seteuid(0)
        shutil.rmtree(reachable)


def test_folders_of_keys_that_were_not_used_for_long_are_removed(fake: Fake):
    """Each new setting makes a key; those of last month go, what is in use stays."""
    golden = Path(__file__).parents[1] / "golden" / "protocol-1-55e9e3f"
    names = ("old", "fresh", "running", "used")
    directories = {name: server_directory(name * 4) for name in names}
    for name, directory in directories.items():
        directory.create()
        phase = "ready" if name == "running" else "stopped"
        shutil.copy(golden / f"{phase}.json", directory.state)
        if name != "fresh":
            os.utime(directory.state, (0, 0))
    with opened_lock(directories["used"].lease_lock) as lock:
        assert try_shared(lock)
        with lease(fake.spec(), policy=FAST):
            eventually(lambda: not directories["old"].path.exists(), "the removal")
    assert all(directories[name].path.exists() for name in names[1:])
    assert fake.directory().path.exists()


def test_client_whose_folder_was_removed_starts_anew(fake: Fake):
    """A program that comes back after weeks is served as if nothing had been."""
    with lease(fake.spec(), policy=FAST):
        pass
    fake.stop()
    shutil.rmtree(fake.directory().path)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
