"""The real uv and the package index: an install from nothing, killed, resumed, upgraded."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import uv

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime import ensure_runtime, resolve_existing, upgrade_runtime
from langchain_car_vllm.runtime.marker import read_marker
from langchain_car_vllm.runtime.requirements import LOCK

ENSURE = "from langchain_car_vllm.runtime import ensure_runtime; print(ensure_runtime().server)"
IMPORTS = "import vllm_mlx.cli, vllm_mlx.server"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, no `vllm-mlx` anywhere; the folder of the managed runtime."""
    monkeypatch.delenv("CAR_VLLM_MLX_BIN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path / ".car" / "visual-runtime"
    shutil.rmtree(tmp_path)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A uv cache that holds nothing."""
    cache = tmp_path / "uv-cache"
    monkeypatch.setenv("UV_CACHE_DIR", str(cache))
    return cache


@pytest.mark.parametrize(
    "platform", ["aarch64-apple-darwin", "x86_64-manylinux_2_35", "aarch64-manylinux_2_35"]
)
def test_the_lock_has_wheels_for_every_platform(tmp_path: Path, platform: str):
    """On each supported platform the locked set resolves to wheels alone."""
    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--dry-run", "--target", tmp_path]
    command += ["--python-platform", platform, "--python-version", "3.12", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--requirement", LOCK]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr


def test_the_lock_pins_what_must_be_pinned():
    """The version of mlx-vlm is the one whose mixed batches are right."""
    text = LOCK.read_text()
    assert "\nmlx-vlm==0.6.12 " in text
    assert "\nvllm-mlx==0.6." in text
    assert "://" not in text


@pytest.mark.full
def test_an_empty_machine_is_provisioned(bare: Path, empty_cache: Path):
    """From an empty home and an empty cache comes a server that can be imported."""
    details = []
    runtime = ensure_runtime(on_progress=lambda progress: details.append(progress.detail))
    assert runtime.server == bare / "bin" / "vllm-mlx"
    assert runtime.version is not None
    assert runtime.version.startswith("0.6.")
    assert any(detail.startswith("downloading mlx-cpu") for detail in details)
    python = bare / "bin" / "python"
    subprocess.run([python, "-I", "-c", IMPORTS], check=True)
    packages = {path.name for path in next(bare.glob("lib/python*/site-packages")).iterdir()}
    assert not packages & {"torch", "torchvision", "gradio", "cv2"}
    subprocess.run([runtime.server, "serve", "--help"], check=True, stdout=subprocess.DEVNULL)


def kill_when_there_is(folder: Path, found: str) -> None:
    """Provision in another process and kill it, with its uv, once a file is there."""
    victim = subprocess.Popen([sys.executable, "-c", ENSURE], start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(folder.glob(found)):
        assert victim.poll() is None
        assert time.monotonic() < deadline
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()


@pytest.mark.full
@pytest.mark.parametrize("found", ["bin/vllm-mlx", "lib/python*/site-packages/mlx*"])
def test_a_killed_install_is_mended(bare: Path, found: str):
    """Killed together with its uv when the first files appear, it is whole after the next call."""
    kill_when_there_is(bare, found)
    assert resolve_existing() is None
    runtime = ensure_runtime()
    marker = read_marker(bare)
    assert marker is not None
    assert marker.state == "complete"
    subprocess.run([bare / "bin" / "python", "-I", "-c", IMPORTS], check=True)
    assert runtime.server == bare / "bin" / "vllm-mlx"


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full resolution brings 5 GB that Linux does not need, so that they are overridden."""
    override = tmp_path / "override.txt"
    names = ("torch", "torchvision", "gradio", "opencv-python")
    override.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in names))
    monkeypatch.setenv("UV_OVERRIDE", str(override))


@pytest.fixture
def cars(bare: Path) -> Path:
    """An environment as CAR makes it, with a package of its own; the folder of its packages."""
    run_uv = [uv.find_uv_bin(), "--quiet"]
    subprocess.run([*run_uv, "venv", "--python", sys.executable, bare], check=True)
    install = [*run_uv, "pip", "install", "--python", bare / "bin" / "python"]
    subprocess.run([*install, "tabulate==0.9.0"], check=True)
    return next(bare.glob("lib/python*/site-packages"))


@pytest.mark.full
@pytest.mark.parametrize("found", [None, "bin/vllm-mlx", "mlx_lm", "numpy-*.dist-info"])
def test_an_environment_of_cars_gets_the_server_and_keeps_its_own(
    bare: Path, cars: Path, light: None, found: str | None
):
    """Packages that CAR put there stay, at the versions that it chose, also after a kill."""
    if found is not None:
        kill_when_there_is(bare if "/" in found else cars, found)
        assert resolve_existing() is None
    runtime = ensure_runtime()
    assert runtime.version is not None
    assert runtime.version.startswith("0.6.")
    subprocess.run([bare / "bin" / "python", "-I", "-c", IMPORTS], check=True)
    site = cars
    assert (site / "tabulate-0.9.0.dist-info").exists()
    marker = read_marker(bare)
    assert marker is not None
    assert not marker.ours


@pytest.mark.full
def test_an_older_version_is_kept_until_it_is_upgraded(
    bare: Path, light: None, monkeypatch: pytest.MonkeyPatch
):
    """An install of 0.5.0 is used; an upgrade moves it to the locked set."""
    monkeypatch.setenv("CAR_VLLM_MLX_SPEC", "vllm-mlx==0.5.0")
    assert ensure_runtime().version == "0.5.0"
    monkeypatch.delenv("CAR_VLLM_MLX_SPEC")
    assert ensure_runtime().version == "0.5.0"
    version = upgrade_runtime().version
    assert version is not None
    assert version.startswith("0.6.")


@pytest.mark.full
def test_offline_without_a_cache(bare: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Without network and cache the error names the step and the cure."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(ProvisionError) as caught:
        ensure_runtime()
    assert caught.value.step == "pip-install"
    assert "UV_OFFLINE" in str(caught.value.hint)


@pytest.mark.full
def test_provisioning_costs_little_more_than_uv(bare: Path, empty_cache: Path):
    """From an empty cache, an install takes at most 1.1 times what `uv` takes of it.

    Its commands are the bare `uv venv` and `uv pip install` of the lock; comparing within one run
    keeps the network out of it.
    """
    began = time.monotonic()
    reached: dict[str, float] = {}
    ensure_runtime(on_progress=lambda p: reached.setdefault(p.detail, time.monotonic()))
    total = time.monotonic() - began
    by_uv = reached["testing vllm-mlx"] - reached["creating a virtual environment"]
    assert total <= 1.1 * by_uv, f"{total:.2f} s, of which uv took {by_uv:.2f} s"


def test_a_runtime_that_is_there_is_found_at_once(machine: None, monkeypatch: pytest.MonkeyPatch):
    """With the runtime there, `ensure_runtime()` takes less than 3 ms and runs no program.

    The least of many rounds is what it costs; the others tell what else the machine does.
    """
    monkeypatch.delenv("CAR_VLLM_MLX_BIN")
    ensure_runtime()
    durations = []
    for _ in range(50):
        began = time.perf_counter()
        ensure_runtime()
        durations.append(time.perf_counter() - began)
    assert min(durations) < 0.003
    assert not [child for child in psutil.Process().children() if child.name() == "uv"]
