"""Programs that run under the server's own Python, beside a folder of mends."""

import json
import subprocess
from pathlib import Path
from typing import Any

from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.child import install_launcher

# The interpreter is not taken down: a thread of MLX's that lets go of something then ends it by a
# signal.
_RUN = """
import os, runpy, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""


def told_by(program: Path, folder: Path, *arguments: str) -> list[Any]:
    """Return the lines of JSON that a program prints.

    Args:
        program: The program; its first argument is the folder.
        folder: Gets the mends; the program runs in it.
        arguments: Its other arguments.
    """
    install_launcher(ServerDirectory(folder))
    python = str(interpreter_of(ensure_runtime().server))
    result = subprocess.run(
        [python, "-W", "ignore", "-c", _RUN, str(program), str(folder), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line[:1] in ("[", "{")]


def tiny_vlm(named: str, tokenizer: str) -> str:
    """Return the directory of a tiny model with media, such as `qwen3_5` or `gemma4-plain`."""
    model = Path(__file__).parents[1] / ".models" / f"tiny-{named}"
    architecture, _, template = named.partition("-")
    if not (model / "config.json").exists():
        builder = Path(__file__).with_name("tiny_vlm.py")
        command = [str(interpreter_of(ensure_runtime().server)), str(builder), architecture]
        command += [str(model), *(["--template", template] if template else [])]
        subprocess.run([*command, "--tokenizer", tokenizer], check=True)
    return str(model)
