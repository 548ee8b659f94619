"""What vllm-mlx does by itself, and that nobody meets it: the quirks of its processes.

The quirks of its answers are listed in `docs/dialect.md`.
"""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from fakes.weights import write_sparse_weights
from faults.support import FAST, Background, Fake, Stream, ask, processes_of

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.errors import PromptTooLongError, ServerStartingError
from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.child_environment import server_environment
from langchain_car_vllm.server.command import Launch, serve_arguments


def test_a_busy_engine_queues_instead_of_refusing(fake: Fake):
    """The simple engine answers one at a time and turns others away unless it is told to wait."""
    environment = server_environment({}, {}, temporary=fake.root, kernels=fake.root, offline=True)
    assert environment["VLLM_MLX_SIMPLE_ENGINE_LOCK_ADMISSION"] == "wait"
    with lease(fake.spec(engine="simple"), policy=FAST) as held:
        calls = [Background(lambda: ask(held.endpoint)) for _ in range(4)]
        assert all(call.result() for call in calls)


def test_a_request_under_way_does_not_keep_a_stopped_server_alive(fake: Fake):
    """A signal alone would wait for the request; the stop does not."""
    fake.switch(token_gate=fake.gate("token"), ignore_sigint=True)
    with lease(fake.spec(), policy=FAST) as held:
        stream = Stream(held.endpoint)
        assert next(stream.tokens())
        assert stop_server(fake.directory(), force=True, policy=FAST)
        assert not processes_of(fake.root)
        stream.close()


def test_a_server_that_is_up_but_unwell_is_not_ready(fake: Fake):
    """`/health` answers 200 all the same."""
    fake.switch(health="unhealthy")
    with pytest.raises(ServerStartingError):
        lease(fake.spec(), policy=FAST, startup_timeout=0.5).__enter__()


def test_another_server_on_the_port_is_not_taken_for_ours(fake: Fake):
    """It answers the same questions under another name."""
    fake.switch(model_name="another")
    with pytest.raises(ServerStartingError):
        lease(fake.spec(), policy=FAST, startup_timeout=0.5).__enter__()


def test_a_model_that_is_here_is_served_without_the_broken_flag(fake: Fake):
    """`--offline` fails on caches that the server itself has made; the variable does not."""
    spec = fake.spec()
    launch = Launch(spec.source, True, Serving(engine="batched"))
    assert "--offline" not in serve_arguments(spec, launch, 1)
    environment = server_environment({}, {}, temporary=fake.root, kernels=fake.root, offline=True)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_output_that_nobody_reads_does_not_block_the_server(fake: Fake):
    """Far more than a pipe would hold goes to a file."""
    fake.switch(flood=2_000_000)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert fake.directory().log.stat().st_size > 1_000_000


def test_what_became_of_a_former_servers_mends_says_nothing_of_this_one(fake: Fake):
    """A binary that is not a Python script cannot be mended: its programs take turns."""
    fake.take_media()
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    fake.binary.chmod(0o755)
    directory = fake.directory()
    directory.create()
    directory.mends.write_text(json.dumps({"prompts-in-order": {"state": "applied"}}))
    with lease(fake.spec(), policy=FAST) as held:
        assert (held.endpoint.engine, held.endpoint.multimodal) == ("batched", True)
        assert held.endpoint.reads_in_order is False
        assert not held.gate.is_open
    assert not directory.mends.exists()


def test_the_profile_follows_the_server(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """The same object, after the memory was raised and the server started anew."""
    layers = {"num_hidden_layers": 40, "num_attention_heads": 8, "hidden_size": 1024}
    config = {"model_type": "llama", "max_position_embeddings": 131_072, **layers}
    (fake.model / "config.json").write_text(json.dumps(config))
    write_sparse_weights(fake.model / "model.safetensors", 10**9)
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "5")
    models = [ChatVllmMlx(str(fake.model), max_tokens=1)]
    models.append(ChatVllmMlx(str(fake.model), max_tokens=1, profile={"max_input_tokens": 30}))
    text = "word " * 20_000
    for model in models:
        with pytest.raises(PromptTooLongError, match=r"memory set aside|allows 30"):
            model.invoke(text)
    models[0].unload()
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "40")
    assert models[0].invoke(text)
    with pytest.raises(PromptTooLongError, match="`max_input_tokens` allows 30"):
        models[1].invoke(text)
    known, chosen = (model.profile or {} for model in models)
    assert known["max_input_tokens"] == fake.state().serving.max_input_tokens > 20_000
    assert chosen == {**known, "max_input_tokens": 30}
    assert models[0] == ChatVllmMlx(str(fake.model), max_tokens=1)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "warm_up", "awarm_up"])
def test_the_profile_is_completed_once_the_model_is_here(fake: Fake, home: Path, way: str):
    """An object that was made before the download has a limit after its first call."""
    model = ChatVllmMlx("org/some-model", max_tokens=1)
    assert "max_input_tokens" not in (model.profile or {})
    folder = home / ".cache/huggingface/hub/models--org--some-model"
    shutil.copytree(fake.model, folder / "snapshots" / "c0ffee")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    calls = {
        "invoke": lambda: model.invoke("hi"),
        "ainvoke": lambda: asyncio.run(model.ainvoke("hi")),
        "stream": lambda: list(model.stream("hi")),
        "warm_up": model.warm_up,
        "awarm_up": lambda: asyncio.run(model.awarm_up()),
    }
    calls[way]()
    assert (model.profile or {})["max_input_tokens"] == 2048
