"""Installations: what is done, with which Python, and what a failure says."""

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
from langchain_car_vllm.runtime.marker import read_marker
from langchain_car_vllm.runtime.provision import provision
from langchain_car_vllm.runtime.virtual_environment import probe_python


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
    assert details[0] == "creating a virtual environment"
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
        ("error: Disc quota exceeded (os error 69)", "free some disk space"),
        ("  Caused by: Too many open files (os error 24)", "ulimit -n"),
        ("Because there is no version of mlx==9", "UV_DEFAULT_INDEX"),
        ("  cause: dns error: failed to lookup address", "connect to the network"),
        ("Hash mismatch for `mlx==1`", "uv cache clean"),
        ("Read-only file system (os error 30)", "writable"),
        ("failed to create directory: Operation not permitted (os error 1)", "writable"),
        ("failed to symlink file: Operation not supported (os error 45)", "on another disk"),
        ("error: No interpreter found for CPython >=3.10, <3.14", "uv python install 3.12"),
    ],
)
def test_common_failures_come_with_a_cure(fake_uv, says, hint):
    """What uv says about the usual troubles becomes one thing to do."""
    fake_uv.set(fail="pip", says=says)
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert hint in caught.value.hint
    assert caught.value.is_retryable is (hint == "connect to the network")


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
    with pytest.raises(NotFoundAfterInstallError, match="was not found after") as caught:
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
    """uv looks for no Python in `/usr/bin` on a Mac: the one there may open a window.

    What it installs may need git, or be built, with what lies there.
    """
    whole = f"{tmp_path}:/usr/bin:/usr/bin/:/bin"
    monkeypatch.setenv("PATH", whole)
    fake_uv.set(path=str(tmp_path / "path"))
    provision(host=MAC)
    assert (tmp_path / "path").read_text().splitlines() == [f"{tmp_path}:/bin", whole]


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
