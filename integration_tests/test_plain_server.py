"""A `vllm-mlx serve` that somebody started by hand, with nothing of this package in it."""

import asyncio
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableParallel
from litellm_proxy import free_port

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.wire.errors import RequestTimeoutError

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
PATIENCE = 300.0
ENGINES = {"simple": (), "batched": ("--continuous-batching",)}


@pytest.fixture(scope="module", params=ENGINES)
def llm(
    request: pytest.FixtureRequest, smollm2: str, fast_cpu: dict[str, str]
) -> Iterator[ChatVllmMlx]:
    """A model on such a server, of each engine; it knows the address alone."""
    port = free_port()
    command = [os.environ["CAR_VLLM_MLX_BIN"], "serve", smollm2, "--host", "127.0.0.1"]
    command += ["--port", str(port), *ENGINES[request.param]]
    with subprocess.Popen(command, env=os.environ | fast_cpu | {"HF_HUB_OFFLINE": "1"}) as server:
        try:
            wait_until_loaded(port, server)
            yield ChatVllmMlx(
                model=smollm2, base_url=f"http://127.0.0.1:{port}/v1", temperature=0, max_tokens=8
            )
        finally:
            server.kill()


def wait_until_loaded(port: int, server: subprocess.Popen[bytes]) -> None:
    """Poll until the model answers."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        with (
            suppress(OSError, ValueError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply,
        ):
            if json.load(reply).get("model_loaded"):
                return
        assert server.poll() is None, f"it ended with {server.returncode}"
        assert time.monotonic() < give_up_at
        time.sleep(0.2)


def is_answer(answer: AIMessage) -> bool:
    """Tell whether something was said."""
    return bool(answer.text.strip())


def test_a_batch_of_four_is_answered(llm: ChatVllmMlx):
    """From threads, from tasks, and from the branches of a chain."""
    assert all(map(is_answer, llm.batch(["Say hello."] * 4)))
    assert all(map(is_answer, asyncio.run(llm.abatch(["Say hello."] * 4))))
    branches = RunnableParallel(one=llm, two=llm, three=llm)
    assert all(map(is_answer, branches.invoke("Say hello.").values()))


def test_a_stop_breaks_no_later_call(llm: ChatVllmMlx):
    """Ten times in a row: the answer ends before the text, and the next one is whole."""
    whole = llm.invoke("Say hello.").text
    for _ in range(10):
        cut = llm.invoke("Count: one, two, three, four.", stop=["t"], max_tokens=24)
        assert "t" not in cut.text
        assert llm.invoke("Say hello.").text == whole


def test_a_timeout_breaks_no_later_call(llm: ChatVllmMlx):
    """The engine may still be at work on what nobody waits for."""
    with pytest.raises(RequestTimeoutError):
        llm.invoke("Write a long story about the sea.", max_tokens=150, timeout=0.5)
    for _ in range(3):
        assert is_answer(llm.invoke("Say hello."))
    parts = llm.stream("Count to a hundred.", max_tokens=60)
    next(parts)
    parts.close()
    assert is_answer(llm.invoke("Say hello."))


@pytest.mark.filterwarnings("ignore::langchain_car_vllm.UnlabelledAnswerWarning")
def test_decisions_are_those_of_a_server_that_tells_probabilities(
    llm: ChatVllmMlx, smollm2: str, fast_cpu: dict[str, str]
):
    """Bias finds the shares that log probabilities tell, on both engines."""
    decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
    criteria = {
        "billing": "Payment, invoice or refund.",
        "disputes": "A charge that the customer did not make.",
        "technical": "Something does not work.",
    }
    team = decisions.Choice(instructions="Which team should handle this?", criteria=criteria)
    plain = langchain_car_vllm.VllmMlxDecisions(model=llm.model, base_url=llm.base_url)
    ours = langchain_car_vllm.VllmMlxDecisions(model=smollm2, server_env=fast_cpu)
    for state in ("My invoice is wrong.", "The app crashes."):
        asked = {"state": state, "questions": {"team": team}}
        told, found = ours.invoke(asked).choices["team"], plain.invoke(asked).choices["team"]
        print(state, told.probabilities, found.probabilities)
        for name, share in told.probabilities.items():
            assert found.probabilities[name] == pytest.approx(share, abs=0.05)
