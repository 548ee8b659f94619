"""`install` with the fake uv."""

from pathlib import Path

import pytest
from faults.support import Fake
from unit.cli.conftest import Cli
from unit.runtime.conftest import FakeUv

from langchain_car_vllm.server import wakefulness


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeUv:
    """The fake uv, on a PATH without any `vllm-mlx`."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    folder = tmp_path / "uv"
    folder.mkdir()
    return FakeUv(folder, monkeypatch)


def test_install_uses_what_is_there(cli: Cli, fake: Fake):
    """An existing install is kept, and its path is the data."""
    done = cli("install")
    assert (done.returncode, done.stdout) == (0, f"{fake.binary}\n"), done.stderr
    assert "vllm-mlx 0.6.0 is installed" in done.stderr


def test_install_makes_what_is_missing(cli: Cli, uv: FakeUv, home: Path):
    """It is installed although installs behind one's back are turned off."""
    binary = home / ".car" / "visual-runtime" / "bin" / "vllm-mlx"
    done = cli("install", CAR_VLLM_MLX_AUTO_INSTALL="0")
    assert (done.returncode, done.stdout) == (0, f"{binary}\n"), done.stderr
    assert "installing vllm-mlx" in done.stderr
    assert cli("install").stdout == done.stdout
    assert uv.commands == ["venv", "pip"]


@pytest.mark.timeout(20)
def test_a_mac_stays_awake_for_it(
    cli_here: Cli, uv: FakeUv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An install may take as long as a Mac waits before it falls asleep."""
    program, paused = tmp_path / "caffeinate", uv.paused_at("pip-begin")
    program.write_text(f"#!/bin/sh\nuntil test -e {paused}; do sleep 0.01; done; rm {paused}\n")
    program.chmod(0o755)
    uv.set(pause="pip-begin")
    monkeypatch.setattr(wakefulness, "PLATFORM", "darwin")
    monkeypatch.setattr(wakefulness, "PROGRAM", str(program))
    done = cli_here("install")
    assert done.returncode == 0, done.stderr
    assert not paused.exists()


def test_upgrade_installs_anew_and_says_what_stays_in_use(
    cli: Cli, uv: FakeUv, home: Path, fake: Fake
):
    """The managed install is brought to the tested set; one that comes first stays in use."""
    done = cli("install", "--upgrade")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{home}/.car/visual-runtime/bin/vllm-mlx\n"
    assert f"`{fake.binary}` stays in use: CAR_VLLM_MLX_BIN names it" in done.stderr
    assert uv.commands == ["venv", "pip"]


def test_upgrade_says_how_the_new_one_comes_into_use(cli: Cli, uv: FakeUv, home: Path, fake: Fake):
    """Of an older one that is found first it is told, with the one command that passes it over."""
    path = f"{fake.binary.parent}:/usr/bin:/bin"
    done = cli("install", "--upgrade", CAR_VLLM_MLX_BIN="", PATH=path)
    binary = f"{home}/.car/visual-runtime/bin/vllm-mlx"
    assert done.stdout == f"{binary}\n", done.stderr
    assert f"`{fake.binary}` stays in use: it is found first" in done.stderr
    assert f"`export CAR_VLLM_MLX_BIN={binary}`" in done.stderr
    assert cli("install", CAR_VLLM_MLX_BIN=binary).stdout == done.stdout


def test_a_failed_install_is_explained(cli: Cli, uv: FakeUv):
    """The step and uv's own last words, exit code 1, and nothing on standard output."""
    uv.set(fail="pip", says="error: No space left on device (os error 28)")
    done = cli("install")
    assert (done.returncode, done.stdout) == (1, "")
    assert "provisioning step `pip-install` failed" in done.stderr
    assert "No space left on device" in done.stderr
    assert "hint: free some disk space and try again" in done.stderr
    assert "Traceback" not in done.stderr
