"""Speculative decoding on the real server: drafts are made and checked, and no token changes."""

import subprocess
from pathlib import Path

import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
QUESTIONS = ("Tell me something.", "Name three rivers.", "Tell me something.")


@pytest.fixture(scope="module")
def with_heads(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny qwen3_5 model with MTP heads."""
    folder = tmp_path_factory.mktemp("models")
    python = str(interpreter_of(ensure_runtime().server))
    plain, out = str(folder / "plain"), str(folder / "heads")
    tiny = [str(HERE / "tiny_vlm.py"), "qwen3_5", plain, "--tokenizer", smollm2]
    for script in (tiny, [str(HERE / "mtp_heads.py"), plain, out]):
        subprocess.run([python, *script], check=True, capture_output=True)
    return out


def test_drafts_change_no_token(with_heads: str, fast_cpu: dict[str, str]):
    """Whole and streamed, asked once and again, alone and together: what is written stays."""
    settings = {"temperature": 0, "max_tokens": 40, "reasoning": False, "server_env": fast_cpu}
    plain = ChatVllmMlx(model=with_heads, **settings)
    expected = [plain.invoke(question).text for question in QUESTIONS]
    plain.unload(force=True)
    llm = ChatVllmMlx(model=with_heads, draft=True, **settings)
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
