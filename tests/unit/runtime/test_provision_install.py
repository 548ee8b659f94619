"""Installations: what is done, with which Python, where, and what a failure says."""

import json
import pickle
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from unit.runtime.provisioning import MAC, make_foreign, missing_uv

from langchain_car_vllm.errors import (
    CarVllmError,
    NotFoundAfterInstallError,
    ProvisionError,
    RuntimeMissingError,
    UvMissingError,
)
from langchain_car_vllm.runtime import (
    VllmRuntime,
    ensure_runtime,
    resolve_existing,
    upgrade_runtime,
)
from langchain_car_vllm.runtime.host import Host
from langchain_car_vllm.runtime.marker import read_marker
from langchain_car_vllm.runtime.provision import provision
from langchain_car_vllm.runtime.virtual_environment import probe_python
from langchain_car_vllm.support import backups


def test_a_runtime_is_installed_where_there_is_none(fake_uv, managed):
    """On an empty machine the locked set goes into the managed environment."""
    runtime = ensure_runtime()
    assert runtime == VllmRuntime(managed / "bin" / "vllm-mlx", "0.6.0")
    assert fake_uv.commands == ["venv", "pip"]
    marker = read_marker(managed)
    assert marker.state == "complete"
    assert marker.ours
    assert marker.requirements.startswith("lock ")
    assert marker.version == "0.6.0"


def test_a_second_call_does_nothing(fake_uv):
    """With the runtime there, nothing is run."""
    first = ensure_runtime()
    assert ensure_runtime() == first
    assert fake_uv.commands == ["venv", "pip"]


def test_progress_is_told(fake_uv):
    """A caller hears what is being done, in order."""
    heard = []
    ensure_runtime(on_progress=heard.append)
    assert {progress.stage for progress in heard} == {"install"}
    details = list(dict.fromkeys(progress.detail for progress in heard))
    assert details[0] == "making a virtual environment"
    assert details[-1] == "testing vllm-mlx"
    assert any(detail.startswith("resolved") for detail in details)
    assert [progress.elapsed for progress in heard] == sorted(p.elapsed for p in heard)


def test_no_uv(monkeypatch, home):
    """Without a `uv` the error names the places and the command that gets one."""
    monkeypatch.setattr("uv.find_uv_bin", missing_uv)
    with pytest.raises(UvMissingError, match="was not found") as caught:
        ensure_runtime()
    assert "PATH" in caught.value.searched
    assert "pip install uv" in caught.value.hint
    assert not (home / ".car").exists()


@pytest.mark.parametrize(("command", "step"), [("venv", "venv"), ("pip", "pip-install")])
def test_a_failing_step_is_named(fake_uv, command, step):
    """An installation that fails names the step and carries uv's own last words."""
    fake_uv.set(fail=command, says="error: the moon is in the way")
    with pytest.raises(ProvisionError, match="the moon is in the way") as caught:
        ensure_runtime()
    assert caught.value.step == step
    assert "exited with 2" in caught.value.detail
    assert resolve_existing() is None


@pytest.mark.parametrize(
    ("says", "hint"),
    [
        ("error: No space left on device (os error 28)", "free some disk space"),
        ("Because there is no version of mlx==9", "UV_DEFAULT_INDEX"),
        ("  cause: dns error: failed to lookup address", "connect to the network"),
        ("Hash mismatch for `mlx==1`", "uv cache clean"),
        ("Read-only file system (os error 30)", "writable"),
        ("error: No interpreter found for CPython >=3.10, <3.14", "uv python install 3.12"),
    ],
)
def test_common_failures_come_with_a_cure(fake_uv, says, hint):
    """What uv says about the usual troubles becomes one thing to do."""
    fake_uv.set(fail="pip", says=says)
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert hint in caught.value.hint


def test_offline_is_the_reason(fake_uv, monkeypatch):
    """Where uv was told to be offline, that is the cure, whatever it says."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    fake_uv.set(fail="pip", says="Because there is no version of mlx==9")
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert "unset UV_OFFLINE" in caught.value.hint


def test_the_binary_may_vanish(fake_uv, managed):
    """An installation that leaves no binary is an error that names the environment."""
    fake_uv.set(fault="no-binary")
    with pytest.raises(NotFoundAfterInstallError, match="still not found") as caught:
        ensure_runtime()
    assert caught.value.path == managed
    assert str(managed) in caught.value.hint
    assert resolve_existing() is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("lost-file", "lacks `vllm_mlx/server.py`"), ("wrong-version", "`numpy==.*is not installed")],
)
def test_an_incomplete_install_is_never_used(fake_uv, fault, reason):
    """An installation that is not the locked set, file by file, fails its test."""
    fake_uv.set(fault=fault)
    with pytest.raises(ProvisionError, match=reason) as caught:
        ensure_runtime()
    assert caught.value.step == "smoke-test"
    assert resolve_existing() is None


@pytest.mark.parametrize("setting", ["0", "false", "OFF", "no"])
def test_installing_can_be_turned_off(fake_uv, home, monkeypatch, setting):
    """`CAR_VLLM_MLX_AUTO_INSTALL=0` refuses and names the command that installs."""
    monkeypatch.setenv("CAR_VLLM_MLX_AUTO_INSTALL", setting)
    with pytest.raises(RuntimeMissingError, match=f"AUTO_INSTALL={setting}") as caught:
        ensure_runtime()
    assert "car-vllm install" in caught.value.hint
    assert fake_uv.calls == []
    assert not (home / ".car").exists()


def test_auto_install_false_refuses(fake_uv):
    """`auto_install=False` refuses before anything is run."""
    with pytest.raises(RuntimeMissingError, match="auto_install=False"):
        ensure_runtime(auto_install=False)
    assert fake_uv.calls == []


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
    assert caught.value.hint == "connect the disk, or remove what leads to it"
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


def test_a_requirement_of_the_users(fake_uv, managed, monkeypatch):
    """`CAR_VLLM_MLX_SPEC` replaces the locked set."""
    monkeypatch.setenv("CAR_VLLM_MLX_SPEC", "vllm-mlx==0.5.0")
    assert ensure_runtime().version == "0.5.0"
    assert "vllm-mlx==0.5.0" in fake_uv.calls[-1]
    assert "--require-hashes" not in fake_uv.calls[-1]
    assert read_marker(managed).requirements.startswith("vllm-mlx==0.5.0")


def test_an_unlocked_install_must_import(fake_uv, monkeypatch):
    """What is not locked is tested by importing the server; the traceback's end is told."""
    monkeypatch.setenv("CAR_VLLM_MLX_SPEC", "vllm-mlx==0.5.0")
    fake_uv.set(fault="broken-import")
    with pytest.raises(ProvisionError, match=r"libmlx\.so: cannot open") as caught:
        ensure_runtime()
    assert caught.value.step == "smoke-test"


def test_packages_of_the_caller_do_not_leak_in(fake_uv, managed, monkeypatch):
    """The caller's own Python environment has no say in the installation."""
    monkeypatch.setenv("PYTHONPATH", "/nonsense")
    monkeypatch.setenv("PYTHONHOME", "/nonsense")
    monkeypatch.setenv("VIRTUAL_ENV", "/nonsense")
    assert ensure_runtime().version == "0.6.0"


def test_a_python_that_no_longer_runs_is_replaced(fake_uv, managed):
    """An environment whose base Python was removed gets a new one of the same version."""
    ensure_runtime()
    python = managed / "bin" / "python"
    python.unlink()
    python.symlink_to("/removed/python3.11")
    assert resolve_existing() is None
    assert ensure_runtime().version == "0.6.0"
    assert fake_uv.commands == ["venv", "pip"] * 2
    assert "cpython=={}.{}.*".format(*sys.version_info) in fake_uv.calls[2]


@pytest.mark.parametrize("damage", ["lost", "emptied"])
def test_an_install_that_lost_a_file_is_repaired_at_once(fake_uv, managed, damage):
    """What cleans up disks may take one; the hint of the failed start is `install --upgrade`."""
    ensure_runtime()
    [file] = managed.glob("lib/python*/site-packages/vllm_mlx/__init__.py")
    whole = file.read_text()
    file.unlink() if damage == "lost" else file.write_text("x" * 99)
    assert upgrade_runtime().version == "0.6.0"
    assert file.read_text() == whole
    assert "--reinstall-package=vllm-mlx" in fake_uv.calls[-1]


BROKEN_PYTHON = """#!/bin/sh
echo "dyld[1]: Library not loaded: @rpath/libpython.dylib" >&2
kill -ABRT $$
"""


@pytest.mark.parametrize("owner", ["ours", "car"])
@pytest.mark.parametrize("change", ["does-not-run", "another-version"])
def test_a_python_that_was_upgraded_away_is_replaced(fake_uv, managed, owner, change):
    """Homebrew or a distribution changed what the environment's Python is a link to."""
    if owner == "car":
        make_foreign(managed, fake_uv, version="0.6.0")
    ensure_runtime()
    python = managed / "bin" / "python"
    found = probe_python(managed)
    python.unlink()
    if change == "does-not-run":
        python.write_text(BROKEN_PYTHON)
    else:
        site = managed / "lib" / "python3.10" / "site-packages"
        told = {**found._asdict(), "prefix": str(managed), "version": [3, 10], "site": str(site)}
        answer = f"case $3 in *vllm_mlx*) exit 1;; esac\necho {shlex.quote(json.dumps(told))}"
        python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    assert ensure_runtime().version == "0.6.0"
    assert fake_uv.commands[-2:] == ["venv", "pip"]
    assert "cpython=={}.{}.*".format(*sys.version_info) in fake_uv.calls[-2]
    commands = len(fake_uv.commands)
    assert ensure_runtime().version == "0.6.0"
    assert len(fake_uv.commands) == commands


@pytest.mark.parametrize("owner", ["ours", "car"])
@pytest.mark.parametrize("change", ["moved", "moved-with-python", "copied", "lost-script"])
def test_an_environment_that_lies_elsewhere_now_is_mended(
    fake_uv, managed, monkeypatch, owner, change
):
    """A home gets another name on a new Mac; the scripts name Python by its old path."""
    if owner == "car":
        make_foreign(managed, fake_uv, version="0.6.0")
    ensure_runtime()
    new_home = managed.parents[1].with_name("new")
    monkeypatch.setenv("HOME", str(new_home))
    moved = new_home / managed.relative_to(managed.parents[1])
    shutil.copytree(managed, moved, symlinks=True)
    if change == "lost-script":
        (moved / "bin" / "vllm-mlx").unlink()
    if change != "copied":
        shutil.rmtree(managed)
    if change == "moved-with-python":
        (moved / "bin" / "python").unlink()
        (moved / "bin" / "python").symlink_to(managed / "bin" / "python3")
    runtime = upgrade_runtime() if change == "copied" else ensure_runtime()
    assert runtime == VllmRuntime(moved / "bin" / "vllm-mlx", "0.6.0")
    assert str(moved) in runtime.server.read_text().splitlines()[0]
    commands = len(fake_uv.commands)
    assert ensure_runtime() == runtime
    assert len(fake_uv.commands) == commands


def asked_pythons(fake_uv):
    return [call[call.index("--python") + 1] for call in fake_uv.calls if call[0] == "venv"]


def test_without_a_python_of_uvs_one_on_path_does(fake_uv, managed):
    """Where uv cannot fetch its own, those on PATH are tried, a proven version first."""
    fake_uv.set(fail_python="aarch64-none")
    assert provision(host=MAC) == managed / "bin" / "vllm-mlx"
    assert asked_pythons(fake_uv) == ["cpython-3.12-macos-aarch64-none", "cpython>=3.10,<3.14"]


def test_a_newer_python_comes_last_and_is_tried(fake_uv, managed, monkeypatch):
    """One that no server has been run with is used where there is no other, if the server loads."""
    fake_uv.set(fail_python="3.10,<3.14")
    older = (sys.version_info[0], sys.version_info[1] - 1)
    monkeypatch.setattr("langchain_car_vllm.runtime.install_steps.PROVEN_PYTHON", older)
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"
    assert asked_pythons(fake_uv)[-1] == "cpython==3.14.*"
    shutil.rmtree(managed)
    fake_uv.set(fault="broken-import")
    with pytest.raises(ProvisionError, match="libmlx"):
        ensure_runtime()


def test_apples_stub_is_never_run(fake_uv, managed, monkeypatch, tmp_path):
    """uv does not see `/usr/bin` on a Mac: the Python there may open a window."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_uv.set(path=str(tmp_path / "path"))
    provision(host=MAC)
    assert (tmp_path / "path").read_text() == f"{tmp_path}:/bin"


def test_a_python_for_intel_is_passed_over(fake_uv, managed):
    """On a Mac uv is asked for its own Python, for Apple silicon, before any on PATH."""
    fake_uv.set(mac="1")
    assert provision(host=MAC) == managed / "bin" / "vllm-mlx"
    assert asked_pythons(fake_uv) == ["cpython-3.12-macos-aarch64-none"]
    assert "--managed-python" in fake_uv.calls[0]
    assert read_marker(managed).state == "complete"


def test_an_environment_of_cars_for_intel_is_told(fake_uv, managed):
    """CAR's environment is not replaced; the error says that its Python is for Intel."""
    fake_uv.set(mac="1")
    make_foreign(managed, fake_uv, version=None)
    with pytest.raises(ProvisionError, match="a Python for Intel") as caught:
        provision(host=MAC)
    assert caught.value.step == "venv"
    assert str(managed) in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        UvMissingError(("PATH",)),
        ProvisionError("venv", "it failed", hint="do this"),
        NotFoundAfterInstallError(Path("/some/where")),
        RuntimeMissingError("auto_install=False"),
    ],
)
def test_errors_survive_pickling(error):
    """Errors cross process borders whole."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert isinstance(copy, CarVllmError)
    assert copy.__dict__ == error.__dict__


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
    assert "a folder of its own" in caught.value.hint
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
