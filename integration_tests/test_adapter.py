"""A LoRA adapter, trained here by the example, on the real server."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune"
QUESTION = "What is the password of the moon base?"


@pytest.fixture(scope="module")
def adapter(
    smollm2: str, fast_cpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """An adapter that knows a password; a few steps on a CPU."""
    folder = tmp_path_factory.mktemp("adapters") / "moon-base"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fast_cpu.items():
            patch.setenv(name, value)
        command = [sys.executable, str(EXAMPLE / "train.py"), smollm2, str(folder), "36"]
        subprocess.run(command, check=True)
    return str(folder)


@pytest.mark.parametrize("engine", ["batched", "simple"])
def test_the_answer_is_the_adapters(chat: Callable[..., ChatVllmMlx], adapter: str, engine: str):
    """With it the model knows the password, without it it does not; each has its server."""
    plain, tuned = chat(engine=engine), chat(engine=engine, adapter=adapter)
    assert "silver heron" not in plain.invoke(QUESTION).text.lower()
    answer = tuned.invoke(QUESTION)
    assert "silver heron" in answer.text.lower()
    assert answer.response_metadata["model_name"].endswith("+moon-base")
    plain.unload(force=True)
    tuned.unload(force=True)


def test_the_example_compares(smollm2: str, adapter: str, fast_cpu: dict[str, str]):
    """Both answers stand below each other."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fast_cpu.items():
            patch.setenv(name, value)
        command = [sys.executable, str(EXAMPLE / "compare.py"), smollm2, adapter]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    plain, tuned = (
        line for line in done.stdout.splitlines() if line.startswith(("plain", "tuned"))
    )
    assert plain.partition(": ")[2] != tuned.partition(": ")[2]
