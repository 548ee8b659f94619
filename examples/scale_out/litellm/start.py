"""Starts LiteLLM in front of servers that `car-vllm serve` runs, and asks it a question.

    uv tool install "litellm[proxy]"
    python examples/scale_out/litellm/start.py MODEL URL KEYFILE URL KEYFILE

MODEL is the name that the servers serve, each URL ends in /v1. LiteLLM pins another openai
than LangChain takes, so it has an environment of its own. Programs get keys of their own, see
virtual_keys.py. Ends LiteLLM when it has answered.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from langchain_car_vllm import ChatVllmMlx

PORT = int(os.environ.get("PORT", "4000"))
PATIENCE = 300


def wait_until_up(url: str, process: subprocess.Popen) -> None:
    """Poll an address until it answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"nothing answers at {url}")


def main() -> None:
    """Start it, ask it, end it."""
    model, *pairs = sys.argv[1:]
    first_url, first_key, second_url, second_key = pairs
    litellm = os.environ.get("LITELLM") or shutil.which("litellm")
    if litellm is None:
        raise SystemExit('install it first: uv tool install "litellm[proxy]"')
    key = f"sk-{secrets.token_hex(16)}"
    folder = tempfile.TemporaryDirectory()
    keys = Path(folder.name) / "keys.txt"
    keys.write_text(f"example {key}\n")
    environment = {
        **os.environ,
        "SERVED_MODEL": f"hosted_vllm/{model}",
        "FIRST_URL": first_url,
        "FIRST_KEY": Path(first_key).read_text().strip(),
        "SECOND_URL": second_url,
        "SECOND_KEY": Path(second_key).read_text().strip(),
        "VIRTUAL_KEYS": str(keys),
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(16)}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    config = Path(__file__).with_name("config.yaml")
    command = [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(PORT)]
    process = subprocess.Popen(command, env=environment)
    try:
        wait_until_up(f"http://127.0.0.1:{PORT}/health/liveliness", process)
        llm = ChatVllmMlx(model="local", base_url=f"http://127.0.0.1:{PORT}/v1", api_key=key)
        print(llm.invoke("Name a moon.", max_tokens=20).text)
    finally:
        process.terminate()
        process.wait(30)
        folder.cleanup()


if __name__ == "__main__":
    main()
