"""The installation inside a start: its errors keep their types, its progress reaches everybody."""

import os
import signal
import sys
from pathlib import Path

import pytest
from faults.support import FAST, Background, Fake, ask, eventually, processes_of

from langchain_car_vllm.errors import (
    ModelDownloadError,
    NotFoundAfterInstallError,
    ProvisionError,
    RuntimeMissingError,
    ServerStoppedError,
    UnknownModelError,
)
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import lease, stop_server

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
    with pytest.raises(UnknownModelError, match=r"holds no `config\.json`"):
        lease(bare.spec(), policy=FAST).__enter__()
    assert not Path(os.environ["FAKE_UV_LOG"]).exists()
    assert not (home / ".car" / "visual-runtime").exists()


def test_stop_while_installing_leaves_nobody(bare: Fake, monkeypatch: pytest.MonkeyPatch):
    """A stop ends uv too, and the waiting caller is told."""
    monkeypatch.setenv("FAKE_UV_PAUSE", "pip-begin")
    call = Background(lambda: lease(bare.spec(), policy=FAST).__enter__())
    paused = Path(os.environ["FAKE_UV_LOG"] + ".pip-begin")
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
