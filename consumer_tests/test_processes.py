"""Models that other processes use: spawned, forked, and joblib's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Serve
from fakes.reply import Reply


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["spawn", "fork", "loky"])
def test_a_model_goes_along(serve: Serve, way: str):
    """One that has been used is handed over, and answers there and here."""
    _, server = serve(lambda body: Reply(text=body["messages"][-1]["content"].upper()))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crowd.py")), way],
        env={**os.environ, "CAR_VLLM_MLX_BASE_URL": server.base_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.stdout == "FIRST A B C D LAST\n", done.stderr
    assert len(server.dialect.requests) == 6
