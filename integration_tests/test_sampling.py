"""Text models on the batched engine: each answer is drawn as its own request asks."""

import json
import subprocess
from pathlib import Path
from typing import Any

from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.child import install_launcher

HERE = Path(__file__).parent


def test_answers_are_drawn_as_they_are_asked_for(tmp_path: Path, smollm2: str):
    """Without the mends company changes the temperature, and settings are lost or draw nonsense."""
    install_launcher(ServerDirectory(tmp_path))
    python = str(interpreter_of(ensure_runtime().server))

    def run(mode: str) -> dict[str, Any]:
        command = [python, "-W", "ignore", str(HERE / "sampling_harness.py"), str(tmp_path)]
        done = subprocess.run(
            [*command, smollm2, mode], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return json.loads(done.stdout.splitlines()[-1])

    mended, plain = run("mended"), run("plain")
    likeliest = mended.pop("likeliest")
    assert plain.pop("likeliest") == likeliest
    assert mended.pop("penalty") != likeliest
    assert plain.pop("penalty") == likeliest
    assert mended == dict.fromkeys(mended, likeliest)
    assert likeliest not in plain.values()
