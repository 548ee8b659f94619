"""`doctor --selftest --model` proves the real server, and prints a page for an issue."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]

_STEPS = ("answer", "prefix hit", "json_schema", "forced tool call", "two at once", "rates", "stop")


def test_both_engines_are_proven(fast_cpu: dict[str, str]):
    """Each step is ok on both engines, and the page names nothing of this user."""
    command = "from langchain_car_vllm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "doctor", "--selftest", "--model"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | fast_cpu,
    )
    for engine in ("simple", "batched"):
        for step in _STEPS:
            assert f"ok       {engine} {step}: " in done.stdout, done.stdout + done.stderr
    page = done.stdout.split("```")[1]
    assert "tokens/s" in page
    assert os.environ["HOME"] not in page
    assert "/tmp" not in page
