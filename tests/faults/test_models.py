"""The model as it lies on the disk decides how the server is started."""

import asyncio
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.weights import weights_of
from faults.support import FAST, ClientProcess, Fake, ask, processes_of
from langchain_core.caches import InMemoryCache

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Parsers
from langchain_car_vllm.errors import ServerStartError
from langchain_car_vllm.server import lease


def command_of(fake: Fake) -> list[str]:
    """Return the command line of the running server."""
    lines = [process.cmdline() for process in processes_of(fake.root)]
    return next(line for line in lines if "serve" in line)


def set_version(fake: Fake, distribution: str, version: str) -> None:
    """Make the fake installation hold a version of a distribution."""
    site = next((fake.root / "env" / "lib").glob("python*/site-packages"))
    for former in site.glob(f"{distribution}-*.dist-info"):
        shutil.rmtree(former)
    (site / f"{distribution}-{version}.dist-info").mkdir()
    metadata = site / f"{distribution}-{version}.dist-info" / "METADATA"
    metadata.write_text(f"Name: {distribution}\nVersion: {version}\n")


def test_a_model_of_lm_studio_is_served_from_its_folder(fake: Fake, home: Path):
    """What LM Studio has downloaded is served without a download, by its path."""
    folder = home / ".lmstudio" / "models" / "org" / "model"
    shutil.copytree(fake.model, folder)
    spec = fake.spec(source="org/model", served_name="org/model", auto_pull=False)
    with lease(spec, policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.served_model == "org/model"
        command = command_of(fake)
        assert command[command.index("serve") + 1] == str(folder)


def test_a_folder_that_was_written_since_is_loaded_anew(fake: Fake):
    """Once nobody uses the server: who fuses or trains again does not get the former answers."""
    weights = fake.model / "model.safetensors"
    with lease(fake.spec(keep_alive=60.0), policy=FAST) as held:
        assert held.endpoint.generation == 1
        weights.write_bytes(weights_of(128))
        os.utime(weights, (1e9, 1e9))
        later = ClientProcess(fake)
        assert [later.read(), later.read()] == ["began", "leased 1"]
        later.finish()
    for _ in range(2):
        with lease(fake.spec(keep_alive=60.0), policy=FAST) as held:
            assert held.endpoint.generation == 2
            assert ask(held.endpoint)
    assert fake.state().previous == "evicted"


def test_a_cache_holds_no_answer_of_former_weights(fake: Fake):
    """It is LangChain's, whose key has the name of the folder alone."""
    cache = InMemoryCache()
    model = ChatVllmMlx(model=str(fake.model), max_tokens=3, cache=cache)
    ways: list[Callable[[], Any]] = [
        lambda: model.invoke("hi"),
        lambda: asyncio.run(model.ainvoke("hi")),
        lambda: model.invoke("hi", model=str(fake.model)),
    ]
    for number, size in enumerate((128, 256), 1):
        weights = fake.model / "model.safetensors"
        weights.write_bytes(weights_of(size))
        os.utime(weights, (1e9, 1e9))
        for way in ways:
            way()
        assert len(cache._cache) == 2 * number
    assert fake.state().generation == 2


def test_nor_one_of_former_weights_that_still_answer(fake: Fake):
    """Somebody uses the old server: what it answers is kept as an answer of its own weights."""
    cache = InMemoryCache()
    model = ChatVllmMlx(model=str(fake.model), max_tokens=3, cache=cache)
    ways: list[Callable[[str], Any]] = [model.invoke, lambda text: asyncio.run(model.ainvoke(text))]
    model.invoke("hi")
    user = ClientProcess(fake)
    assert [user.read(), user.read()] == ["began", "leased 1"]
    weights = fake.model / "model.safetensors"
    weights.write_bytes(weights_of(128))
    os.utime(weights, (1e9, 1e9))
    for number, way in enumerate(ways):
        way("hi")
        assert len(cache._cache) == 1 + number
        way(f"new {number}")
        assert (len(cache._cache), fake.state().generation) == (2 + number, 1)
    user.finish()
    for number, way in enumerate(ways):
        way("hi")
        way(f"new {number}")
    assert (len(cache._cache), fake.state().generation) == (6, 2)


def test_files_are_waited_for_while_they_are_written(fake: Fake):
    """A load in the middle of a copy would fail, and one that takes for ever is not waited for."""
    with lease(fake.spec(keep_alive=60.0), policy=FAST):
        pass
    (fake.model / "generation_config.json").write_text("{}")
    began = time.monotonic()
    with lease(fake.spec(keep_alive=60.0), policy=dataclasses.replace(FAST, stop_patience=0.3)):
        assert time.monotonic() - began > 0.3
    assert fake.state().generation == 2


def test_the_models_own_defaults_reach_the_server(fake: Fake):
    """Sampling defaults and `preserve_thinking` are passed on, since the server reads neither."""
    template = "{% if tools %}<tool_call>{% endif %}{% if preserve_thinking %}<think>{% endif %}"
    (fake.model / "chat_template.jinja").write_text(template)
    generation = {"temperature": 0.6, "top_k": 20}
    (fake.model / "generation_config.json").write_text(json.dumps(generation))
    with lease(fake.spec(server_args=("--default-top-k", "5")), policy=FAST):
        command = command_of(fake)
    assert command[command.index("--default-temperature") + 1] == "0.6"
    position = command.index("--default-chat-template-kwargs")
    assert json.loads(command[position + 1]) == {"preserve_thinking": True}
    tops = [command[n + 1] for n, word in enumerate(command) if word == "--default-top-k"]
    assert tops == ["20", "5"]


def test_the_users_arguments_win(fake: Fake):
    """What a user says on the server's command line is what callers are told of the server."""
    (fake.model / "chat_template.jinja").write_text("{% if tools %}<tool_call>{% endif %}<think>")
    own = ("--tool-call-parser", "llama", "--tool-call-parser=kimi_k2", "--reasoning-parser=qwen3")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.parsers == Parsers("hermes", "glm4")
    with lease(fake.spec(server_args=own), policy=FAST) as held:
        assert held.endpoint.parsers == Parsers("kimi_k2", "qwen3")
    batching = ("--continuous-batching",)
    with lease(fake.spec(engine="simple", server_args=batching), policy=FAST) as held:
        assert held.endpoint.engine == "batched"


def test_an_older_server_gets_what_it_knows(fake: Fake):
    """Options that came later are left out for a server that would refuse to start with them."""
    set_version(fake, "vllm_mlx", "0.3.0")
    generation = {"temperature": 0.6, "top_k": 20}
    (fake.model / "generation_config.json").write_text(json.dumps(generation))
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.version == "0.3.0"
        command = command_of(fake)
    assert "--default-temperature" in command
    assert "--default-top-k" not in command


@pytest.mark.parametrize(("version", "knows"), [("0.4.1", False), ("0.5.0", True)])
def test_an_older_server_embeds(fake: Fake, version: str, knows: bool):
    """Before 0.5.0 a server would not start if it was told to refuse texts that are too long."""
    set_version(fake, "vllm_mlx", version)
    with lease(fake.spec(kind="embeddings"), policy=FAST):
        command = command_of(fake)
    assert "--embedding-model" in command
    assert ("--embedding-overflow-policy" in command) is knows


@pytest.mark.parametrize("version", ["0.6.4", "0.6.16", "0.7.10"])
def test_media_are_not_batched_where_it_is_wrong(fake: Fake, version: str):
    """Versions of mlx-vlm that give wrong text in mixed batches are refused, with the reason."""
    set_version(fake, "mlx_vlm", version)
    (fake.model / "config.json").write_text(json.dumps({"model_type": "x", "vision_config": {}}))
    with (
        pytest.raises(ServerStartError, match=f"mlx-vlm {version} gives wrong text"),
        lease(fake.spec(engine="batched"), policy=FAST),
    ):
        pass
    with lease(fake.spec(engine="simple"), policy=FAST) as held:
        assert ask(held.endpoint)


def test_media_are_batched_where_it_is_right(fake: Fake):
    """The version that the locked set pins is batched."""
    set_version(fake, "mlx_vlm", "0.6.12")
    (fake.model / "config.json").write_text(json.dumps({"model_type": "x", "vision_config": {}}))
    with lease(fake.spec(engine="batched"), policy=FAST) as held:
        assert held.endpoint.engine == "batched"
