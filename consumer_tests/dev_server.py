"""`langgraph dev` on the application of these tests, with its check for blocking calls on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.support import eventually

ASK = {"messages": [{"role": "user", "content": "hi"}]}
_APP = Path(__file__).with_name("graph_app")
_NO_REPORTS = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}


@contextmanager
def running_dev(folder: Path, model: str) -> Iterator[str]:
    """Serve the application's graphs; nothing of it lives afterwards.

    Args:
        folder: An empty one, for a copy of the application and its log.
        model: What the graphs ask.

    Yields:
        The server's address.
    """
    app, log = folder / "app", folder / "log"
    shutil.copytree(_APP, app)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-reload", "--port", str(port)],
            cwd=app,
            env=os.environ | {"MODEL": model, **_NO_REPORTS},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _is_up(address) or process.poll() is not None, "it", patience=200)
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_graph(address: str, name: str) -> dict[str, Any]:
    """Run a graph to its end and return its state, or its error."""
    return json.loads(post(address, "/runs/wait", {"assistant_id": name, "input": ASK}))


def post(address: str, path: str, body: dict[str, Any]) -> str:
    """Send a request and return the whole answer."""
    data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", data, kind)
    with urllib.request.urlopen(request, timeout=200) as response:
        return response.read().decode()


def _is_up(address: str) -> bool:
    """Tell whether the server answers."""
    try:
        with urllib.request.urlopen(f"{address}/ok", timeout=5):
            return True
    except OSError:
        return False
