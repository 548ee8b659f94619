"""The fault suite: every test proves at its end that no process of its own is left."""

import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from fakes.weights import write_sparse_weights
from faults.support import FAST, NONCE, Fake, MakeModel, bearers_of, eventually, processes_of
from faults.turns import admission, directory, server

from langchain_car_vllm.server import ServerSpec, running_servers, stop_server

__all__ = ["admission", "directory", "server"]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small filesystem in memory; for tests that are marked `can_mount`."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mounted(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, check=True)
        return folder

    yield mounted
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


# It serves all tests of this process, so no single one's nonce may reach it.
resource_tracker.ensure_running()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The fake installation; afterwards none of the processes that it led to may live.

    They are found by a nonce that they all inherit, and by the paths on their command lines.
    """
    nonce = secrets.token_hex(16)
    monkeypatch.setenv(NONCE, nonce)
    monkeypatch.setenv("VLLM_MLX_FAKE", "")
    # Nobody answers there: a supervisor asks the Hub about what it is to download.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    installation = Fake(tmp_path / "fake")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(installation.binary))
    yield installation

    def is_quiet() -> bool:
        # A start that a caller gave up goes on, so that its supervisor may come later.
        for found, _ in running_servers():
            stop_server(found, policy=FAST)
        return not bearers_of(nonce) and not processes_of(tmp_path)

    try:
        eventually(is_quiet, "the last process to end")
    finally:
        for process in [*bearers_of(nonce), *processes_of(tmp_path)]:
            process.kill()


@pytest.fixture
def make_model(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> MakeModel:
    """Makes models of so many GB, with room for 2.6 GB; 0.26 GB of each are cache."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "2.6")
    numbers = iter(range(100))

    def make(gigabytes: float) -> ServerSpec:
        folder = fake.root / f"sized{next(numbers)}"
        shutil.copytree(fake.model, folder)
        write_sparse_weights(folder / "model.safetensors", int(gigabytes * 1e9))
        return fake.spec(source=str(folder), served_name=str(folder))

    return make
