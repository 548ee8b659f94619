"""Speculative decoding on the real server: drafts are made and checked, and no token changes."""

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
QUESTIONS = ("Tell me something.", "Name three rivers.", "Tell me something.")


class Drafted(NamedTuple):
    """A model, and what drafts for it."""

    model: str
    draft: bool | str


def run_there(script: str, *arguments: str) -> None:
    """Run a script under the server's own Python."""
    python = str(interpreter_of(ensure_runtime().server))
    subprocess.run([python, str(HERE / script), *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module", params=["heads", "heads, thoughts left out", "assistant"])
def drafted(
    request: pytest.FixtureRequest, smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Drafted:
    """A tiny model with MTP heads of its own, and one with a draft model."""
    folder = tmp_path_factory.mktemp("models")
    plain, out = str(folder / "plain"), str(folder / "out")
    kind = request.param.split(",")[0]
    family, template = {
        "heads": ("qwen3_5", "qwen3.6"),
        "heads, thoughts left out": ("qwen3_5", "qwen3.5"),
        "assistant": ("gemma4", "plain"),
    }[request.param]
    run_there("tiny_vlm.py", family, plain, "--tokenizer", smollm2, "--template", template)
    run_there("tiny_drafters.py", kind, plain, out)
    return Drafted(out, True) if kind == "heads" else Drafted(plain, out)


def test_drafts_change_no_token(drafted: Drafted, fast_cpu: dict[str, str]):
    """Whole and streamed, asked once and again, alone and together: what is written stays."""
    settings = {"temperature": 0, "max_tokens": 40, "reasoning": False, "server_env": fast_cpu}
    plain = ChatVllmMlx(model=drafted.model, **settings)
    expected = [plain.invoke(question).text for question in QUESTIONS]
    plain.unload(force=True)
    llm = ChatVllmMlx(model=drafted.model, draft=drafted.draft, **settings)
    try:
        for question, text in zip(QUESTIONS, expected, strict=True):
            answer = llm.invoke(question)
            assert answer.text == text
            timings = answer.response_metadata["timings"]
            assert timings["drafted_tokens"] > 10
            assert 0 <= timings["accepted_tokens"] <= timings["drafted_tokens"]
            assert "".join(chunk.text for chunk in llm.stream(question)).strip() == text.strip()
        assert [answer.text for answer in llm.batch(list(QUESTIONS))] == expected
    finally:
        llm.unload(force=True)
