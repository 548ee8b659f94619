"""`langgraph dev` with its check for blocking calls on, from a cold start of the fake server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.support import FAST, Fake, eventually

from langchain_car_vllm.server import running_servers, stop_server

APP = Path(__file__).with_name("graph_app")
ASK = {"messages": [{"role": "user", "content": "hi"}]}


def post(address: str, path: str, body: dict[str, Any]) -> str:
    """Send a request and return the whole answer."""
    data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", data, kind)
    with urllib.request.urlopen(request, timeout=200) as response:
        return response.read().decode()


def is_up(address: str) -> bool:
    """Tell whether the server answers."""
    try:
        with urllib.request.urlopen(f"{address}/ok", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`langgraph dev` on the application; nothing of it lives afterwards."""
    fake = Fake(tmp_path / "fake")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(fake.binary))
    folder = tmp_path / "app"
    shutil.copytree(APP, folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-reload", "--port", str(port)],
            cwd=folder,
            env=os.environ
            | {
                "MODEL": str(fake.model),
                "LANGSMITH_TRACING": "false",
                "LANGGRAPH_CLI_NO_ANALYTICS": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_up(address) or process.poll() is not None, "it", patience=200)
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for directory, _ in running_servers():
            stop_server(directory, policy=FAST)


@pytest.mark.timeout(600)
def test_no_call_blocks_the_event_loop(dev: str):
    """Cold and warm, whole and streamed, on the loop and in threads; what blocks is found out."""
    found = json.loads(post(dev, "/runs/wait", {"assistant_id": "every_way", "input": ASK}))
    assert "messages" in found, found
    told = [message["content"].strip() for message in found["messages"]]
    assert told == ["hi", *["tok0 tok1 tok2"] * 3]
    blocked = post(dev, "/runs/wait", {"assistant_id": "blocking", "input": ASK})
    assert "locking" in blocked
    assert "nobody minded" not in blocked
    events = post(
        dev,
        "/runs/stream",
        {"assistant_id": "agent", "input": ASK, "stream_mode": ["messages-tuple", "custom"]},
    )
    assert "tok0" in events
    assert "event: error" not in events
