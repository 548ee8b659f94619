"""Where an install lies: its folder, the home it needs, and the disk."""

import os
import pwd
import shlex
import shutil
import subprocess

import pytest

from langchain_car_vllm.errors import (
    ProvisionError,
)
from langchain_car_vllm.runtime import (
    ensure_runtime,
    resolve_existing,
    upgrade_runtime,
)
from langchain_car_vllm.runtime.host import Host
from langchain_car_vllm.runtime.provision import provision
from langchain_car_vllm.support import backups


def test_no_home(fake_uv, monkeypatch):
    """Without HOME there is no place to install to, and the error says so."""
    monkeypatch.delenv("HOME")
    with pytest.raises(ProvisionError, match="HOME is not set") as caught:
        ensure_runtime()
    assert caught.value.step == "resolve-home"


def test_a_home_that_cannot_be_written(fake_uv, home):
    """A folder that cannot be made is an error that names it."""
    (home / ".car").write_text("in the way")
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert caught.value.step == "mkdir"
    assert str(home / ".car") in str(caught.value)


def test_a_folder_whose_disk_is_gone(fake_uv, managed):
    """A runtime that was moved to another disk is not installed in its link's place."""
    managed.parent.mkdir()
    managed.symlink_to("/Volumes/Models/runtime")
    with pytest.raises(ProvisionError, match="is a link to `/Volumes/Models/runtime`") as caught:
        ensure_runtime()
    assert caught.value.hint == "connect the disk, or remove the link to it"
    assert not fake_uv.calls


def test_too_little_disk(fake_uv, monkeypatch, managed):
    """Too little disk is refused with the numbers, before anything is downloaded."""
    monkeypatch.setattr("langchain_car_vllm.runtime.provision.needed_mb", lambda **_: 10**12)
    with pytest.raises(ProvisionError, match="needs 1000000000000 MB") as caught:
        ensure_runtime()
    assert caught.value.step == "disk"
    assert fake_uv.calls == []


def test_what_is_there_needs_no_more_disk(fake_uv, managed, monkeypatch):
    """An interrupted install needs the rest of its space only, a finished one none."""
    fake_uv.set(fail="pip")
    with pytest.raises(ProvisionError):
        ensure_runtime()
    with (managed / "packages").open("wb") as file:
        file.truncate(3 * 10**12)
    free = shutil.disk_usage(managed).free // 1_000_000
    needed = "langchain_car_vllm.runtime.provision.needed_mb"
    monkeypatch.setattr(needed, lambda **_: free + 3_100_000)
    with pytest.raises(ProvisionError, match="the runtime needs") as caught:
        ensure_runtime()
    assert caught.value.step == "disk"
    fake_uv.set(fail=None)
    monkeypatch.setattr(needed, lambda **_: free + 2_900_000)
    ensure_runtime()
    monkeypatch.setattr(needed, lambda **_: 10**12)
    assert upgrade_runtime().version == "0.6.0"


def test_an_unlocked_install_needs_more_disk(fake_uv, monkeypatch, home):
    """On Linux it brings torch, which the refusal has to know of."""
    usage = shutil.disk_usage("/")._replace(free=2_000_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setenv("CAR_VLLM_MLX_SPEC", "vllm-mlx==0.6.0")
    with pytest.raises(ProvisionError, match="needs 6000 MB"):
        ensure_runtime()
    monkeypatch.delenv("CAR_VLLM_MLX_SPEC")
    assert ensure_runtime().server.exists()


def test_one_variable_moves_all_of_it(fake_uv, home, tmp_path, monkeypatch):
    """Where `~/.car` cannot be made, `CAR_HOME` is enough: state and runtime lie there."""
    (home / ".car").touch()
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert "CAR_VLLM_MLX_RUNTIME" in caught.value.hint
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "elsewhere"))
    assert ensure_runtime().server == tmp_path / "elsewhere" / "visual-runtime" / "bin" / "vllm-mlx"


def test_no_home_but_a_car_home(fake_uv, tmp_path, monkeypatch):
    """Without HOME the hint names the variable that ends the problem, and it does."""
    monkeypatch.delenv("HOME")
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert "CAR_HOME" in caught.value.hint
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "elsewhere"))
    assert ensure_runtime().version == "0.6.0"


def test_the_runtime_can_lie_elsewhere(fake_uv, home, tmp_path, monkeypatch):
    """`CAR_VLLM_MLX_RUNTIME` names its folder, whatever the home allows."""
    monkeypatch.setenv("CAR_VLLM_MLX_RUNTIME", str(tmp_path / "own"))
    assert ensure_runtime().server == tmp_path / "own" / "bin" / "vllm-mlx"
    assert not (home / ".car").exists()


@pytest.mark.parametrize("run", [ensure_runtime, upgrade_runtime])
@pytest.mark.parametrize("name", ["letter.txt", "Photos", "bin", "share"])
def test_a_folder_of_other_things_is_no_place_for_it(fake_uv, tmp_path, monkeypatch, run, name):
    """What is installed there would be removed with all of it by `uninstall`."""
    root = tmp_path / "disk"
    (root / ".Spotlight-V100").mkdir(parents=True)
    (root / name).mkdir()
    monkeypatch.setenv("CAR_VLLM_MLX_RUNTIME", str(root))
    with pytest.raises(ProvisionError, match=f"holds other files, such as `{name}`") as caught:
        run()
    assert "to another folder" in caught.value.hint
    assert fake_uv.commands == []
    assert sorted(path.name for path in root.iterdir()) == [".Spotlight-V100", name]
    (root / name).rmdir()
    assert run().version == "0.6.0"


def test_a_home_with_a_car_home_keeps_the_shared_runtime(fake_uv, managed, tmp_path, monkeypatch):
    """A home that can be written keeps the runtime, which CAR shares, wherever the state goes."""
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "elsewhere"))
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"


def test_purgeable_space_is_told_on_a_mac(fake_uv, monkeypatch):
    """The Finder counts space as free that no program gets."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1_000_000))
    with pytest.raises(ProvisionError, match="MB free") as caught:
        provision(host=Host("darwin", "arm64", (15, 0)))
    assert "purgeable" in caught.value.hint


def test_the_runtime_stays_out_of_backups(fake_uv, managed, tmp_path, monkeypatch):
    """Time Machine is told, whose tool is imitated, and others find a tag."""
    (tmp_path / "tmutil").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/told\n')
    (tmp_path / "tmutil").chmod(0o755)
    monkeypatch.setattr(backups, "PLATFORM", "darwin")
    monkeypatch.setattr(backups, "_TMUTIL", str(tmp_path / "tmutil"))
    ensure_runtime()
    ensure_runtime()
    assert (tmp_path / "told").read_text() == f"addexclusion {managed}\n"
    assert (managed / backups.TAG).exists()


def test_an_install_is_fine_whatever_the_umask(fake_uv, managed):
    """Others may write to no part of it, and to none in a folder that they cannot enter."""
    before = os.umask(0)
    try:
        ensure_runtime()
    finally:
        os.umask(before)
    parts = [managed / "bin", managed / "lib"]
    assert [part.stat().st_mode & 0o022 for part in parts] == [0, 0]
    for part in parts:
        part.chmod(0o777)
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"


PLACES = ("..", ".", "bin", "lib/python3.11/site-packages")


@pytest.mark.parametrize("place", PLACES)
def test_a_runtime_that_others_may_write_to_is_not_run(
    fake_uv, reachable, write_binary, monkeypatch, place
):
    """Whoever may put files into it would run them as the user; the hint is what ends it."""
    managed = reachable / "runtime" / "own"
    monkeypatch.setenv("CAR_VLLM_MLX_RUNTIME", str(managed))
    binary = write_binary(managed)
    assert resolve_existing() == binary
    (managed / place).chmod(0o777)
    assert resolve_existing() is None
    for auto_install in ("1", "0"):
        monkeypatch.setenv("CAR_VLLM_MLX_AUTO_INSTALL", auto_install)
        with pytest.raises(ProvisionError, match="others may write to") as caught:
            ensure_runtime()
    assert fake_uv.calls == []
    subprocess.run(shlex.split(caught.value.hint.split("`")[1]), check=True)
    assert resolve_existing() == binary


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_a_runtime_of_another_user_is_not_run(fake_uv, managed, write_binary):
    """One of root's is fine: an administrator installed it for all."""
    write_binary(managed)
    os.chown(managed, pwd.getpwnam("daemon").pw_uid, -1)
    assert resolve_existing() is None
    with pytest.raises(ProvisionError, match="belongs to another user") as caught:
        ensure_runtime()
    assert caught.value.hint == "set CAR_VLLM_MLX_RUNTIME to a folder of your own"
