"""`doctor --selftest --model` proves the real server, and prints a page for an issue."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]

_STEPS = ("answer", "prefix hit", "json_schema", "forced tool call", "two at once", "rates", "stop")


def test_both_engines_are_proven(fast_cpu: dict[str, str], tmp_path: Path):
    """Each step is ok on both engines, from an empty home, of which nothing but uv's cache stays.

    What is printed names nothing of this user.
    """
    runtime = Path(os.environ["HOME"]) / ".car" / "visual-runtime"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAR_")}
    variables = {"HOME": str(tmp_path), "CAR_VLLM_MLX_RUNTIME": str(runtime), **fast_cpu}
    command = "from langchain_car_vllm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "doctor", "--selftest", "--model"],
        capture_output=True,
        text=True,
        check=False,
        env=kept | variables,
    )
    for engine in ("simple", "batched"):
        for step in _STEPS:
            assert f"ok       {engine} {step}: " in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    page = done.stdout.split("```")[1]
    assert "tokens/s" in page
    assert "None" not in page
    for secret in (str(tmp_path), str(runtime), "/tmp", socket.gethostname()):
        assert secret not in done.stdout
    assert {path.name for path in (tmp_path / ".cache").iterdir()} <= {"uv"}
    assert not list(tmp_path.glob(".car/run/vllm-py/*"))
    environments = [_environment(process) for process in psutil.process_iter()]
    assert str(tmp_path) not in [found.get("HOME") for found in environments]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}
