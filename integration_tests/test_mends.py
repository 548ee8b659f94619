"""The mends of the server's installation, on the locked one."""

import json
import shutil
import subprocess
from pathlib import Path

from langchain_car_vllm.runtime import ensure_runtime, interpreter_of


def test_every_mend_applies_to_the_locked_runtime(tmp_path: Path):
    """No mend steps aside, fails or waits for a module that the tested server no longer has."""
    source = Path(__file__).parents[1] / "langchain_car_vllm" / "server" / "supervisor"
    shutil.copy(source / "launch.py", tmp_path)
    shutil.copytree(source / "mends", tmp_path / "mends")
    python = interpreter_of(ensure_runtime().server)
    result = subprocess.run(
        [python, tmp_path / "launch.py", "check"], capture_output=True, text=True, check=True
    )
    states = json.loads(result.stdout.splitlines()[-1])
    assert states
    del states["connection-after-failure-httptools"]  # uvicorn's parser where that is installed
    assert {name: state for name, state in states.items() if state["state"] != "applied"} == {}
