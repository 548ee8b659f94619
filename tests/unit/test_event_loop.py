"""A model is constructed on a running event loop, where no file may be read."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx
from fakes.dialect import Dialect
from fakes.dialect_server import Server

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import CarVllmError, UnknownModelError


@pytest.fixture
def strict():
    """Every blocking call on a loop raises, wherever it comes from."""
    with blockbuster_ctx() as blockbuster:
        yield blockbuster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's files, with a context window that no name tells."""
    path = tmp_path / "some-model"
    path.mkdir()
    config = {"model_type": "llama", "max_position_embeddings": 4321}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(8))
    return path


@pytest.fixture
def cached(home: Path) -> str:
    """A Hub model in the cache."""
    snapshot = home / ".cache/huggingface/hub/models--some--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    config = {"model_type": "llama", "max_position_embeddings": 4321}
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "tokenizer.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(bytes(8))
    return "some/model"


async def test_the_guard_works(strict: BlockBuster, folder: Path):
    """A look into the folder on the loop is noticed."""
    with pytest.raises(BlockingError):
        (folder / "config.json").stat()


@pytest.mark.parametrize("kind", ["catalog", "hub", "cached", "directory", "base_url"])
async def test_construction_reads_no_file(
    kind: str, strict: BlockBuster, folder: Path, cached: str
):
    """Whatever the model is; embeddings and copies for another model too."""
    model = {
        "catalog": "vllm-mlx/gemma-4-e4b-it",
        "directory": str(folder),
        "hub": "mlx-community/Qwen3-4B-4bit",
    }.get(kind, cached)
    base_url = "http://127.0.0.1:9/v1" if kind == "base_url" else None
    llm = ChatVllmMlx(model=model, base_url=base_url)
    assert llm.profile is not None
    assert llm.profile["tool_calling"]
    assert VllmMlxEmbeddings(model=model, base_url=base_url).model == model
    llm.with_config(configurable={}).bind_tools([])
    assert ChatVllmMlx(**dict(llm)).profile == llm.profile
    llm.get_num_tokens("some words")
    llm._get_ls_params()


async def test_the_profile_is_completed_at_the_first_call(folder: Path, fake_calls):
    """What the files say is added off the loop; what the user set stays."""
    llm = ChatVllmMlx(model=str(folder), profile={"tool_calling": False})
    assert llm.profile is not None
    assert "max_input_tokens" not in llm.profile
    await fake_calls(llm)
    assert llm.profile["max_input_tokens"] == 4321
    assert llm.profile["tool_calling"] is False


@pytest.fixture
def fake_calls():
    """The way to a call, up to where a server would be needed."""

    async def call(llm: ChatVllmMlx) -> None:
        await llm._acall(None, {})

    return call


def test_off_the_loop_the_files_are_read_at_once(folder: Path, cached: str):
    """Nothing changes for a program without an event loop."""
    for model in (str(folder), cached):
        profile = ChatVllmMlx(model=model).profile
        assert profile is not None
        assert profile["max_input_tokens"] == 4321


def test_somebody_elses_endpoint_is_not_described_by_local_files(cached: str):
    """A model of the same name in the cache says nothing of what is served there."""
    llm = ChatVllmMlx(model=cached, base_url="http://127.0.0.1:9/v1")
    assert llm.profile is not None
    assert "max_input_tokens" not in llm.profile


@pytest.mark.parametrize("kind", ["directory", "cached", "base_url"])
async def test_what_is_to_be_validated_is_by_the_first_call(
    kind: str, strict: BlockBuster, folder: Path, cached: str, fake_calls
):
    """Nothing is looked at on the loop; each call is refused that the construction would have."""
    base_url = "http://127.0.0.1:9/v1" if kind == "base_url" else None
    model = str(folder) if kind == "directory" else cached
    llm = ChatVllmMlx(model=model, base_url=base_url, validate_model_on_init=True)
    for _ in range(2):
        with pytest.raises(CarVllmError) as caught:
            await fake_calls(llm)
        assert "refused" in str(caught.value) if base_url else "safetensors" in str(caught.value)


@pytest.mark.parametrize("way", ["./some-model", "../some-model", " ./some-model ", "."])
async def test_a_relative_path_is_taken_on_the_loop(
    way: str, strict: BlockBuster, folder: Path, monkeypatch: pytest.MonkeyPatch, fake_calls
):
    """The working directory is in no file; what lies there is still looked at off the loop."""
    here = folder if way == "." else folder.parent / "x" if ".." in way else folder.parent
    await asyncio.to_thread(here.mkdir, exist_ok=True)
    await asyncio.to_thread(monkeypatch.chdir, here)
    llm = ChatVllmMlx(model=way)
    assert llm.model == str(folder)
    await fake_calls(llm)
    assert llm.profile is not None
    assert llm.profile["max_input_tokens"] == 4321
    call = await ChatVllmMlx(model="a/b")._acall(None, {"model": way})
    assert call.spec.source == str(folder)
    with pytest.raises(UnknownModelError, match="no directory"):
        await llm.ainvoke("hi", model="./nothing")


async def test_an_adapter_is_not_looked_at(strict: BlockBuster, folder: Path):
    """A folder or a repository on top of a model."""
    for adapter in (str(folder), "~/adapter", "org/adapter"):
        assert ChatVllmMlx(model=str(folder), adapter=adapter).adapter == adapter


@pytest.mark.parametrize("per_call", [False, True])
async def test_a_missing_directory_is_told_by_the_call(per_call: bool, tmp_path: Path):
    """What construction could not see is the same error, before anything is started."""
    missing = str(tmp_path / "nothing")
    llm = ChatVllmMlx(model="a/b" if per_call else missing)
    options = {"model": missing} if per_call else {}
    with pytest.raises(UnknownModelError, match="no directory"):
        await llm.ainvoke("hi", **options)
    if not per_call:
        with pytest.raises(UnknownModelError, match="no directory"):
            await VllmMlxEmbeddings(model=missing).aembed_query("hi")


def test_an_agent_built_in_the_loop_answers(socket_enabled: None):
    """As under `langgraph dev`: model, agent and call in one async node, with every guard on."""
    from langchain.agents import create_agent

    with Server(Dialect(served_model="m")) as server:

        async def node() -> str:
            llm = ChatVllmMlx(model="m", base_url=server.base_url)
            agent = create_agent(llm, tools=[])
            answer = await agent.ainvoke({"messages": [("user", "hi")]})
            return answer["messages"][-1].text

        asyncio.run(node())  # what is imported at first use is there
        with blockbuster_ctx():
            assert asyncio.run(node())


_FIRST_CALLS = """
import asyncio, importlib.abc, sys, threading
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings

sys.modules["tornado"] = None  # tenacity takes it along where it is installed
looked_for = []


class Listener(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            looked_for.append(name)


async def calls(base_url):
    await VllmMlxEmbeddings(model="m", base_url=base_url).aembed_query("hi")
    await ChatVllmMlx(model="m", base_url=base_url).with_structured_output(
        {"title": "a", "type": "object"}
    ).ainvoke("hi")


sys.meta_path.insert(0, Listener())
asyncio.run(calls(sys.argv[1]))
print(*looked_for)
"""
_LANGCHAINS = ("langchain", "langchain_core", "langsmith", "tenacity", "pydantic")
"""What LangChain itself imports where any model is made and called."""


def test_the_first_calls_import_nothing_on_the_loop(socket_enabled: None):
    """It takes tens of milliseconds, in which no other request of a program would go on."""
    with Server(Dialect(served_model="m")) as server:
        command = [sys.executable, "-c", _FIRST_CALLS, server.base_url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = [name for name in done.stdout.split() if name.partition(".")[0] not in _LANGCHAINS]
    assert ours == []
