"""An empty home, servers that say what a test wants, and the real one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Script

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime
from langchain_car_vllm.server import running_servers, stop_server

ROOT = Path(__file__).parents[1]
_FOREIGN = ("CAR_", "UV_", "VLLM_MLX_", "HF_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_")
Serve = Callable[..., tuple[ChatVllmMlx, Server]]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let SIGTERM end a run as Ctrl-C does: fixtures end the servers that they started.

    Before each test, since what one of them runs may take the signal away.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME, with no variable of the caller's that could reach a test."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a factory: a script in, a model and its server out."""
    with ExitStack() as stack:

        def make(script: Script, **settings: object) -> tuple[ChatVllmMlx, Server]:
            server = stack.enter_context(Server(Dialect("m", script=script)))
            return ChatVllmMlx(model="m", base_url=server.base_url, **settings), server

        yield make


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What leads to the real server that the checkout keeps; at the end nothing of it lives."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN):
                patch.delenv(name)
        patch.setenv("HOME", str(ROOT / ".test-runtime" / "home"))
        found = {
            "CAR_VLLM_MLX_BIN": str(ensure_runtime().server),
            "CAR_HOME": str(tmp_path_factory.mktemp("car-home")),
        }
        # The CPU wheel of MLX brings reference BLAS; OpenBLAS, where installed, is far faster.
        blas = sorted(Path("/usr/lib").glob("*/openblas-pthread/libblas.so.3"))
        yield found | ({"LD_PRELOAD": str(blas[0])} if blas else {})
        patch.setenv("CAR_HOME", found["CAR_HOME"])
        for directory, _ in running_servers():
            stop_server(directory)


@pytest.fixture
def real(home: Path, provisioned: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have models be served by the real server."""
    for name, value in provisioned.items():
        monkeypatch.setenv(name, value)


def built(name: str) -> str:
    """Build a model where it is missing and return its folder."""
    folder, builder = ROOT / ".models" / name, ROOT / "examples" / "build_model.py"
    subprocess.run([sys.executable, str(builder), name, str(folder)], check=True)
    return str(folder)
