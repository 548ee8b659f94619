"""A home, a run state and an environment of the benchmark's own, gone when it ends."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from benchmarks import replay
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server import running_servers, stop_server

ROOT = Path(__file__).parents[1]
MODELS = ROOT / ".models"
_FOREIGN = ("CAR_", "VLLM_MLX_", "HF_", "OPENAI_", "LANGCHAIN_", "LANGSMITH_", "OLLAMA_")


@contextmanager
def _surroundings(**variables: str) -> Iterator[None]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        mock.patch.dict(os.environ, {**kept, "CAR_HOME": folder, **variables}, clear=True),
    ):
        try:
            yield
        finally:
            for directory, _ in running_servers():
                stop_server(directory, force=True)


@contextmanager
def replayed() -> Iterator[str]:
    """Have the replay server be the `vllm-mlx` of this machine; yield a model that it serves."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        binary, model = replay.install(Path(folder))
        with _surroundings(HOME=folder, CAR_VLLM_MLX_BIN=str(binary)):
            yield str(model)


@contextmanager
def real() -> Iterator[None]:
    """Have the real `vllm-mlx`, installed by the product inside of this checkout.

    Nothing is left of earlier conversations: the server keeps prompts on the disk, and reuses
    nothing for an exact repeat.
    """
    home = ROOT / ".test-runtime" / "home"
    home.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(home / ".cache" / "vllm-mlx", ignore_errors=True)
    with (
        mock.patch.dict(os.environ, {"HOME": str(home)}),
        _surroundings(CAR_VLLM_MLX_BIN=str(ensure_runtime().server)),
    ):
        yield


def smollm2() -> str:
    """Build SmolLM2-135M where it is missing and return its directory."""
    folder = MODELS / "smollm2-135m"
    builder = ROOT / "examples" / "build_model.py"
    subprocess.run([sys.executable, str(builder), folder.name, str(folder)], check=True)
    return str(folder)


def tiny(architecture: str, template: str) -> str:
    """Build a tiny multimodal model where it is missing and return its directory."""
    folder = MODELS / f"tiny-{architecture}-{template}"
    return _built(folder, "tiny_vlm.py", architecture, "--template", template)


def tiny_text(family: str) -> str:
    """Build a tiny text model where it is missing and return its directory."""
    return _built(MODELS / f"tiny-{family}", "tiny_text.py", family)


def _built(folder: Path, builder: str, kind: str, *options: str) -> str:
    if not (folder / "config.json").exists():
        python = interpreter_of(ensure_runtime().server)
        command = [str(python), str(ROOT / "integration_tests" / builder), kind, str(folder)]
        subprocess.run([*command, "--tokenizer", smollm2(), *options], check=True)
    return str(folder)


@contextmanager
def with_bytecode() -> Iterator[dict[str, str]]:
    """Yield an environment in which programs keep their bytecode, as users' do."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="bench-") as cache:
        yield {**kept, "PYTHONPYCACHEPREFIX": cache}


def fast_cpu() -> dict[str, str]:
    """The CPU wheel of MLX brings reference BLAS; OpenBLAS, where installed, is far faster."""
    found = sorted(Path("/usr/lib").glob("*/openblas-pthread/libblas.so.3"))
    return {"LD_PRELOAD": str(found[0])} if found else {}
