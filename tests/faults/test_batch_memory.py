"""A large batch waits in line for the memory that was set aside, instead of ending the server."""

import json

import pytest
from fakes.published_configs import CONFIGS
from fakes.weights import write_sparse_weights
from faults.support import Background, Fake, eventually

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ServerCrashedError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import directory_of

PROMPTS = [f"{number} " + "word " * 1999 for number in range(32)]
WAITS = "waiting for memory that other requests use"
# LangChain's own limit depends on the cores of the machine.
ALL_AT_ONCE = {"max_concurrency": 32}


@pytest.fixture
def llm(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> ChatVllmMlx:
    """Qwen3-8B at 4 bits on a Mac with 16 GB, whose server has memory for 24,000 tokens."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "11.45")
    (fake.model / "config.json").write_text(json.dumps(CONFIGS["Qwen3-8B"]))
    write_sparse_weights(fake.model / "model.safetensors", 4_600_000_000)
    fake.switch(memory_tokens=24_000, token_gate=fake.gate("tokens"))
    return ChatVllmMlx(model=str(fake.model), max_tokens=3, max_retries=0)


def test_a_batch_of_many_long_prompts_waits_in_line(llm: ChatVllmMlx, fake: Fake):
    """All are answered, a few at a time, by one server that never aborts; the wait is told."""
    told: list[Progress] = []
    llm.on_progress = told.append
    call = Background(lambda: llm.batch(PROMPTS, ALL_AT_ONCE))
    eventually(lambda: WAITS in {p.detail for p in told}, "the wait to be told")
    fake.open_gate("tokens")
    answers = call.result()
    assert [answer.text for answer in answers] == ["tok0 tok1 tok2 "] * 32
    assert len(fake.starts()) == 1


def test_without_admission_the_same_batch_ends_the_server(
    llm: ChatVllmMlx, fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    """Or the test above would prove nothing; the error names fewer at a time as a cure."""
    monkeypatch.setenv("CAR_VLLM_MLX_ADMISSION", "0")
    call = Background(lambda: llm.batch(PROMPTS, ALL_AT_ONCE))
    log = directory_of(llm._spec()).log
    eventually(lambda: log.exists() and "Insufficient Memory" in log.read_text(), "the end of it")
    fake.open_gate("tokens")  # whoever comes late has a server of his own, which must answer
    with pytest.raises(ServerCrashedError) as caught:
        call.result()
    assert "max_concurrency" in caught.value.hint
