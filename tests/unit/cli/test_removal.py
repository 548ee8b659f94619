"""`rm` removes what was downloaded, and nothing that is the user's own."""

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from faults.support import FAST, Fake
from unit.cli.conftest import Cli, command, interrupt

from langchain_car_vllm.cli.removal import remove_path
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server import lease, running_servers

REPOSITORY = "org/model"


@pytest.fixture
def cached(home: Path) -> Path:
    """A repository in the Hub's cache, with its lock folder and a neighbour."""
    cache = home / ".cache" / "huggingface" / "hub"
    folder = cache / "models--org--model"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "1").write_bytes(b"\0" * 200_000)
    (snapshot / "model.safetensors").symlink_to(folder / "blobs" / "1")
    (snapshot / "config.json").write_text("{}")
    (cache / ".locks" / "models--org--model").mkdir(parents=True)
    (cache / "models--org--other").mkdir()
    return folder


def test_removed_when_told_so(cli_here: Cli, cached: Path):
    """The repository goes with its locks; its neighbour stays."""
    done = cli_here("rm", REPOSITORY, "--yes")
    assert done.returncode == 0, done.stderr
    assert "freed 0.2 MB" in done.stderr
    assert not cached.exists()
    assert not (cached.parent / ".locks" / cached.name).exists()
    assert (cached.parent / "models--org--other").exists()


def test_several_are_removed(cli_here: Cli, cached: Path):
    """All or, where some are not here, none; each of those is named."""
    done = cli_here("rm", "org/none", REPOSITORY, "org/nothing", "x", "--yes")
    assert done.returncode == 1
    assert "`org/none` is not on this machine" in done.stderr
    assert "`org/nothing` is not on this machine" in done.stderr
    assert "`x` is not a model id" in done.stderr
    assert cached.exists()
    assert cli_here("rm", REPOSITORY, "org/other", "--yes").returncode == 0
    assert not list(cached.parent.glob("models--*"))


def test_ctrl_c_at_the_question(cached: Path):
    """It ends with the exit code of Ctrl-C, and removes nothing."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("rm", REPOSITORY), stdin=theirs, stderr=subprocess.PIPE, start_new_session=True
    ) as asking:
        assert asking.stderr is not None
        while b"[y/N]" not in os.read(asking.stderr.fileno(), 1 << 16):
            pass
        assert interrupt(asking) == 130
    os.close(ours)
    os.close(theirs)
    assert cached.exists()


def test_nobody_is_there_to_ask(cli_here: Cli, cached: Path):
    """Without a terminal nothing is removed unless it is said."""
    done = cli_here("rm", REPOSITORY)
    assert done.returncode == 1
    assert "hint: pass --yes" in done.stderr
    assert cached.exists()


def test_a_directory_of_the_users_stays(cli_here: Cli, fake: Fake):
    """Its server may run; its files are not ours."""
    done = cli_here("rm", str(fake.model), "--yes")
    assert done.returncode == 1
    assert "never removes" in done.stderr
    assert (fake.model / "model.safetensors").exists()


@pytest.mark.parametrize("started_as", [REPOSITORY, "Org/Model", "its folder"])
def test_a_server_of_the_model_is_stopped(
    cli_here: Cli, cached: Path, fake: Fake, home: Path, started_as: str
):
    """What runs from the files goes first, with its logs and prefix caches, however it is named."""
    if started_as == "its folder":
        started_as = str(cached / "snapshots" / "abc")
    elif started_as != REPOSITORY:  # as disks have it that do not tell letter case apart
        cached.with_name("models--Org--Model").symlink_to(cached)
    spec = fake.spec(source=started_as, served_name=started_as)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for file in fake.model.iterdir():
        (cached / "snapshots" / "abc" / file.name).unlink(missing_ok=True)
        (cached / "snapshots" / "abc" / file.name).write_bytes(file.read_bytes())
    with lease(spec, policy=FAST):
        pass
    directory = fake.directory(source=started_as, served_name=started_as)
    directory.prefix_caches.mkdir()
    done = cli_here("rm", REPOSITORY, "--yes")
    assert done.returncode == 0, done.stderr
    assert running_servers() == []
    assert not directory.path.exists()


def test_a_link_goes_and_what_it_leads_to_stays(cli_here: Cli, cached: Path, tmp_path: Path):
    """A cache that was moved to another disk is not emptied through a link."""
    elsewhere = tmp_path / "disk"
    cached.rename(elsewhere)
    cached.symlink_to(elsewhere)
    assert cli_here("rm", REPOSITORY, "--yes").returncode == 0
    assert not cached.is_symlink()
    assert (elsewhere / "blobs" / "1").exists()


def test_what_is_not_here(cli_here: Cli):
    """It is an error, as for every other command."""
    done = cli_here("rm", REPOSITORY, "--yes")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: `{REPOSITORY}` is not on this machine\n")


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.EPERM, "Privacy & Security"), (errno.EACCES, "who owns")]
)
def test_what_macos_keeps_private_is_told(
    cached: Path, monkeypatch: pytest.MonkeyPatch, number: int, cure: str
):
    """No program that ends lets a terminal at a folder that it lacks leave for."""

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(number, os.strerror(number), str(path))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(ConfigurationError, match="cannot be removed") as caught:
        remove_path(cached)
    assert cure in caught.value.hint
