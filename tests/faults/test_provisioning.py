"""The installation inside a start: its errors keep their types, its progress reaches everybody."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.support import FAST, Background, Fake, ask, can_mount, eventually, processes_of

from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.cli.machine_checks import CHECKS
from langchain_car_vllm.errors import (
    ModelDownloadError,
    NotFoundAfterInstallError,
    ProvisionError,
    RuntimeMissingError,
    ServerStartError,
    ServerStartingError,
    ServerStoppedError,
    UnknownModelError,
)
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import install_runtime, mounts
from langchain_car_vllm.runtime.mounts import is_noexec
from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.supervisor.diagnosis import diagnose

FAKE_UV = Path(__file__).parents[1] / "fakes" / "uv"


@pytest.fixture
def bare(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A machine without `vllm-mlx`, with a fake uv that installs the fake server."""
    folder = tmp_path / "uv"
    folder.mkdir()
    binary = folder / "uv"
    binary.write_text(f"#!{sys.executable}\n{FAKE_UV.read_text()}")
    binary.chmod(0o755)
    monkeypatch.delenv("CAR_VLLM_MLX_BIN")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CAR_UV", str(binary))
    monkeypatch.setenv("FAKE_UV_LOG", str(folder / "uv.log"))
    monkeypatch.setenv("FAKE_UV_SERVER", str(fake.binary))
    return fake


def test_first_call_installs_and_serves(bare: Fake):
    """From nothing to an answer, with the installation told to the caller."""
    seen: list[Progress] = []
    with lease(bare.spec(), policy=FAST, on_progress=seen.append) as held:
        assert ask(held.endpoint)
        assert held.endpoint.version == "0.6.0"
    assert "install" in [progress.stage for progress in seen]


def test_failing_install_names_the_step_and_says_what_uv_said(
    bare: Fake, monkeypatch: pytest.MonkeyPatch
):
    """The error of the installation reaches the caller with its type and fields."""
    monkeypatch.setenv("FAKE_UV_FAIL", "pip")
    monkeypatch.setenv("FAKE_UV_SAYS", "error: no wheels with a matching tag")
    with pytest.raises(ProvisionError, match="no wheels with a matching tag") as caught:
        lease(bare.spec(), policy=FAST).__enter__()
    assert caught.value.step == "pip-install"


def test_binary_that_vanishes_after_install(bare: Fake, monkeypatch: pytest.MonkeyPatch):
    """An installation without its binary is an error of its own, with the path."""
    monkeypatch.setenv("FAKE_UV_FAULT", "no-binary")
    with pytest.raises(NotFoundAfterInstallError) as caught:
        lease(bare.spec(), policy=FAST).__enter__()
    assert caught.value.path == Path(os.environ["HOME"]) / ".car" / "visual-runtime"


def test_installing_can_be_turned_off(bare: Fake):
    """With `auto_install=False` nothing is installed and the error says how to."""
    with pytest.raises(RuntimeMissingError) as caught:
        lease(bare.spec(auto_install=False), policy=FAST).__enter__()
    assert "car-vllm install" in (caught.value.hint or "")


def test_nothing_is_installed_for_a_model_that_cannot_be_had(
    bare: Fake, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """A model that may not be fetched, or is gone, is refused before uv is asked for anything."""
    remote = {"source": "org/model", "served_name": "org/model"}
    with pytest.raises(ModelDownloadError, match="auto_pull=False"):
        lease(bare.spec(**remote, auto_pull=False), policy=FAST).__enter__()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelDownloadError, match="HF_HUB_OFFLINE"):
        lease(bare.spec(**remote), policy=FAST).__enter__()
    (bare.model / "config.json").unlink()
    with pytest.raises(UnknownModelError, match=r"has no `config\.json`"):
        lease(bare.spec(), policy=FAST).__enter__()
    assert not Path(os.environ["FAKE_UV_LOG"]).exists()
    assert not (home / ".car" / "visual-runtime").exists()


def test_install_that_hangs_leaves_nobody(bare: Fake, monkeypatch: pytest.MonkeyPatch):
    """The caller has given up, as promised the start continues, and it ends by itself."""
    monkeypatch.setenv("FAKE_UV_HANG", "pip-half")
    monkeypatch.setenv("CAR_VLLM_MLX_DOWNLOAD_STALL", "2")
    with pytest.raises(ServerStartingError):
        lease(bare.spec(), policy=FAST, startup_timeout=0.5).__enter__()
    assert bare.wait_for_phase("stopped").reason == "failed"
    bare.wait_until_unsupervised()
    with pytest.raises(ProvisionError, match="did not answer"):
        lease(bare.spec(), policy=FAST).__enter__()


@pytest.mark.parametrize("point", ["venv-begin", "pip-begin"])
def test_stop_while_installing_leaves_nobody(
    bare: Fake, monkeypatch: pytest.MonkeyPatch, point: str
):
    """A stop ends uv too, which is not asked for another Python, and the waiting caller is told."""
    monkeypatch.setenv("FAKE_UV_PAUSE", point)
    call = Background(lambda: lease(bare.spec(), policy=FAST).__enter__())
    paused = Path(os.environ["FAKE_UV_LOG"] + f".{point}")
    eventually(paused.exists, "uv to install")
    assert stop_server(bare.directory(), policy=FAST)
    with pytest.raises(ServerStoppedError):
        call.result()
    eventually(lambda: not processes_of(paused.parent), "uv to end")


def test_supervisor_killed_while_installing_is_replaced(
    bare: Fake, monkeypatch: pytest.MonkeyPatch
):
    """The waiting call goes on with a new supervisor, which finishes the installation."""
    monkeypatch.setenv("FAKE_UV_PAUSE", "pip-begin")
    call = Background(lambda: lease(bare.spec(), policy=FAST).__enter__().endpoint)
    paused = Path(os.environ["FAKE_UV_LOG"] + ".pip-begin")
    eventually(paused.exists, "uv to install")
    supervisor = bare.state().supervisor
    monkeypatch.delenv("FAKE_UV_PAUSE")
    os.kill(supervisor.pid, signal.SIGKILL)
    paused.unlink()
    endpoint = call.result()
    assert endpoint is not None
    assert endpoint.generation == 2


def test_python_that_was_upgraded_away_is_mended_by_the_next_call(bare: Fake, home: Path):
    """Before that `doctor` says so; the binary and all that is written down look as before."""
    with lease(bare.spec(), policy=FAST):
        assert "vllm-mlx 0.6.0 in" in doctor_on_the_runtime()
    bare.stop()
    python = home / ".car" / "visual-runtime" / "bin" / "python"
    python.unlink()
    python.write_text(
        "#!/bin/sh\necho 'Library not loaded: @rpath/libpython3.12.dylib'; exit 134\n"
    )
    python.chmod(0o755)
    assert "does not run, or was replaced" in doctor_on_the_runtime()
    with lease(bare.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert "vllm-mlx 0.6.0 in" in doctor_on_the_runtime()


def doctor_on_the_runtime() -> str:
    """Return what `car-vllm doctor` says of the runtime."""
    try:
        return dict(CHECKS)["runtime"]()
    except (Finding, Warned) as found:
        return f"{found} {found.hint}"


@can_mount
def test_home_that_lets_no_program_run(
    bare: Fake, mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is installed there, `doctor` says so beforehand, and the cure is one."""
    monkeypatch.setenv("HOME", str(mount("size=2g,noexec")))
    assert "does not let programs run (noexec)" in doctor_on_the_runtime()
    with pytest.raises(ProvisionError, match="noexec") as caught:
        lease(bare.spec(), policy=FAST).__enter__()
    assert "CAR_VLLM_MLX_RUNTIME" in (caught.value.hint or "")
    assert not list(Path(os.environ["HOME"]).rglob("vllm-mlx"))
    monkeypatch.setenv("CAR_VLLM_MLX_RUNTIME", str(tmp_path / "elsewhere"))
    with lease(bare.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert "noexec" not in doctor_on_the_runtime()


@can_mount
def test_install_whose_disk_lets_no_program_run_any_more(
    bare: Fake, mount, monkeypatch: pytest.MonkeyPatch
):
    """What was installed and proven does not count as working: the disk is looked at each time."""
    home = mount("size=2g")
    monkeypatch.setenv("HOME", str(home))
    install_runtime()
    subprocess.run(["mount", "-o", "remount,noexec", str(home)], check=True)
    assert "CAR_VLLM_MLX_RUNTIME" in doctor_on_the_runtime()
    with pytest.raises(ProvisionError, match="noexec") as caught:
        install_runtime()
    assert "CAR_VLLM_MLX_RUNTIME" in (caught.value.hint or "")
    with pytest.raises(ProvisionError, match="noexec"):
        lease(bare.spec(), policy=FAST).__enter__()


@can_mount
@pytest.mark.parametrize("source", [None, "org/model"])
def test_interpreter_that_may_not_run(fake: Fake, mount, source: str | None):
    """A server and a download whose Python the system refuses name it, with the cure."""
    python = mount("size=200m,noexec") / Path(sys.executable).name
    shutil.copy(os.path.realpath(sys.executable), python)
    script = fake.binary.read_text().split("\n", 1)[1]
    fake.binary.write_text(f"#!{python}\n{script}")
    changes = {"source": source, "served_name": source} if source else {}
    with pytest.raises(ServerStartError, match=f"cannot be run: `{python}`") as caught:
        lease(fake.spec(**changes), policy=FAST).__enter__()
    assert "noexec" in (caught.value.hint or "")


@pytest.mark.parametrize("line", ["#!/removed/bin/python3", "#!/removed/bin/run", "#! /removed"])
def test_override_whose_first_line_leads_nowhere(fake: Fake, line: str):
    """An environment was removed or moved, and CAR_VLLM_MLX_BIN still names its script."""
    script = fake.binary.read_text().split("\n", 1)[1]
    fake.binary.write_text(f"{line}\n{script}")
    with pytest.raises(ServerStartError, match="names is not there") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert "CAR_VLLM_MLX_BIN" in (caught.value.hint or "")


@can_mount
@pytest.mark.parametrize("is_told_by", ["flag", "options"])
def test_disks_that_let_no_program_run(mount, monkeypatch: pytest.MonkeyPatch, is_told_by: str):
    """Linux tells it of the filesystem, macOS among the options of the mount."""
    if is_told_by == "options":
        monkeypatch.setattr(mounts, "_NOEXEC", 0)
    folder = mount("size=1m,noexec")
    assert is_noexec(folder)
    assert is_noexec(folder / "not" / "there" / "yet")
    assert not is_noexec(folder.parent)


def test_library_on_a_disk_without_programs_is_told(tmp_path: Path):
    """Python itself may run, and only its compiled modules may not."""
    log = tmp_path / "log"
    log.write_text(
        "ImportError: /x/core.so: failed to map segment from shared object: Operation not permitted"
    )
    assert "noexec" in (diagnose(1, log).hint or "")
