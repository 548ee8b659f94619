"""LiteLLM's proxy as a process of its own."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uv

_LITELLM = "litellm[proxy]==1.108.7"
# Its scripts name no folder, so that a checkout may be moved.
_NEW = ("--quiet", "--clear", "--relocatable")
_PATIENCE = 600.0


def install_litellm(environment: Path) -> Path:
    """Return the program, in an environment of its own: it pins another openai."""
    program = environment / "bin" / "litellm"
    if not program.exists():
        tool = uv.find_uv_bin()
        subprocess.run([tool, "venv", *_NEW, str(environment)], check=True)
        python = str(environment / "bin" / "python")
        install = [tool, "pip", "install", "--quiet", "--python", python, _LITELLM]
        subprocess.run(install, check=True)
    return program


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_litellm(
    program: Path, config: Path, environment: Mapping[str, str], port: int, log: Path
) -> Iterator[str]:
    """Run the proxy until the end, and give its address."""
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | local,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    with process:
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/health/liveliness", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < deadline, url
            time.sleep(0.2)
