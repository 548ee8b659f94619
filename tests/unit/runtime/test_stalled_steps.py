"""Steps of an installation that neither say nor compute anything are ended."""

import json
import sys

import psutil
import pytest

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime import VllmRuntime, ensure_runtime, import_verdicts
from langchain_car_vllm.runtime.commands import run_step

COMPUTES = "import time\nwhile time.process_time() < 2.2: pass\nprint('done')"
HANGS = """#!/bin/sh
echo "$@" >> "$0.log"
test -e "$0.back" || sleep 1000
"""


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Limits that a test can wait for."""
    monkeypatch.setenv("CAR_VLLM_MLX_DOWNLOAD_STALL", "1")
    monkeypatch.setenv("CAR_VLLM_MLX_LOAD_STALL", "2")


@pytest.fixture(autouse=True)
def nobody_left():
    """What is given up is ended, and what it started too."""
    before = psutil.Process().children(recursive=True)
    yield
    assert set(psutil.Process().children(recursive=True)) <= set(before)


@pytest.mark.parametrize("point", ["venv-begin", "pip-half"])
def test_a_uv_that_hangs_is_ended(fake_uv, managed, point):
    """The error says what to try; the next call goes on where it was."""
    fake_uv.set(hang=point)
    with pytest.raises(ProvisionError, match="`uv` did not answer: no sign of life") as caught:
        ensure_runtime()
    assert "CAR_VLLM_MLX_DOWNLOAD_STALL=0" in caught.value.hint
    assert fake_uv.commands in (["venv"], ["venv", "pip"])
    fake_uv.set(hang=None)
    assert ensure_runtime() == VllmRuntime(managed / "bin" / "vllm-mlx", "0.6.0")


def test_an_install_whose_import_hangs_is_passed_over(
    fake_uv, home, managed, write_binary, monkeypatch
):
    """Somebody else's, on a network disk that is gone, say; that may be back after ten minutes."""
    binary = write_binary(home / ".local", "0.6.0")
    python = binary.with_name("python")
    python.unlink()
    python.write_text(HANGS)
    python.chmod(0o755)
    for _ in range(2):
        assert ensure_runtime() == VllmRuntime(managed / "bin" / "vllm-mlx", "0.6.0")
        monkeypatch.setattr(import_verdicts, "_known", {})  # as in another program
    assert len(python.with_name("python.log").read_text().splitlines()) == 1
    python.with_name("python.back").touch()
    verdicts = home / ".car" / "run" / "tested-installs.json"
    kept = json.loads(verdicts.read_text())
    kept[str(binary)]["at"] -= 600
    verdicts.write_text(json.dumps(kept))
    assert ensure_runtime().server == binary


def test_what_computes_in_silence_is_left_alone(tmp_path):
    """It takes longer than the limit, and says nothing until it is done."""
    assert run_step("try", [sys.executable, "-c", COMPUTES], directory=tmp_path) == "done"
