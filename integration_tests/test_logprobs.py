"""Log probabilities from the real server, against mlx-lm's own softmax."""

import json
import os
import subprocess
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

MODELS = Path(__file__).parents[1] / ".models"
QUESTION = "Which is the largest moon of Saturn?"
TOKENS = 8


@pytest.fixture(scope="module")
def expected(smollm2: str, fast_cpu: dict[str, str]) -> list[list[tuple[str, float]]]:
    """The three likeliest tokens of each step of the greedy answer."""
    harness = Path(__file__).with_name("logprobs_harness.py")
    python = str(interpreter_of(ensure_runtime().server))
    command = [python, str(harness), smollm2, QUESTION, str(TOKENS)]
    environment = {**os.environ, **fast_cpu}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def check(content: list[dict], expected: list[list[tuple[str, float]]]) -> None:
    """Compare what OpenAI's form says with what mlx-lm says."""
    assert len(content) == TOKENS
    for entry, best in zip(content, expected, strict=True):
        assert entry["token"] == best[0][0]
        assert entry["logprob"] == pytest.approx(best[0][1], abs=0.01)
        for found, (text, value) in zip(entry["top_logprobs"], best, strict=True):
            assert found["logprob"] == pytest.approx(value, abs=0.02)
            assert bytes(found["bytes"]).decode() == text


@pytest.mark.parametrize("engine", ["batched", "simple"])
def test_they_are_those_of_mlx_lm(
    chat: Callable[..., ChatVllmMlx], expected: list[list[tuple[str, float]]], engine: str
):
    """Of a whole answer and of a stream, on both engines; nothing comes where nobody asks."""
    llm = chat(engine=engine, max_tokens=TOKENS)
    answer = llm.invoke(QUESTION, logprobs=True, top_logprobs=3)
    check(answer.response_metadata["logprobs"]["content"], expected)
    asking = llm.bind(logprobs=True, top_logprobs=3)
    chunks = list(asking.stream(QUESTION))
    assert sum("logprobs" in chunk.response_metadata for chunk in chunks) > 2
    whole = reduce(lambda left, right: left + right, chunks)
    check(whole.response_metadata["logprobs"]["content"], expected)
    text = "".join(entry["token"] for entry in whole.response_metadata["logprobs"]["content"])
    assert text.strip() == whole.text.strip()
    plain = llm.invoke(QUESTION)
    assert plain.text == answer.text
    assert "logprobs" not in plain.response_metadata
    llm.unload(force=True)


@pytest.mark.full
@pytest.mark.parametrize("engine", ["batched", "simple"])
def test_a_multimodal_model_tells_them_too(smollm2: str, fast_cpu: dict[str, str], engine: str):
    """On its own route: one entry a token, and a greedy token is the likeliest."""
    folder = MODELS / "tiny-qwen3_5"
    if not (folder / "config.json").exists():
        python = interpreter_of(ensure_runtime().server)
        builder = Path(__file__).with_name("tiny_vlm.py")
        command = [str(python), str(builder), "qwen3_5", str(folder), "--tokenizer", smollm2]
        subprocess.run(command, check=True)
    llm = ChatVllmMlx(
        model=str(folder), engine=engine, temperature=0, max_tokens=TOKENS, server_env=fast_cpu
    )
    asking = llm.bind(logprobs=True, top_logprobs=3, reasoning=False)
    whole = reduce(lambda left, right: left + right, asking.stream(QUESTION))
    content = whole.response_metadata["logprobs"]["content"]
    assert len(content) == TOKENS
    for entry in content:
        assert entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"], abs=0.001)
    assert asking.invoke(QUESTION).response_metadata["logprobs"]["content"] == content
    llm.unload(force=True)
