"""Ray Serve from the package index over two nodes, each replica with a server of its own."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uv

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import AuthenticationError, CarVllmError
from langchain_car_vllm.server.state import read_state

pytestmark = [pytest.mark.full, pytest.mark.timeout(3000)]
ROOT = Path(__file__).parents[1]
RAY = "ray[serve]==2.60.0"
KEY = "sk-of-the-cluster"
PATIENCE = 600.0
REQUESTS = 32


class Cluster:
    """The cluster's process, and what it says.

    Args:
        process: It runs `ray_cluster.py`.
        url: Where the ingress answers.
        model: What it serves.
        folder: Holds the CAR_HOME of each node.
    """

    def __init__(
        self, process: "subprocess.Popen[str]", url: str, model: str, folder: Path
    ) -> None:
        self.url, self.model, self.folder = url, model, folder
        self._process = process

    def hear(self) -> dict:
        """Return the next event; Ray writes lines of its own in between."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"event"'):
                return json.loads(line)
        raise AssertionError(f"the cluster ended with {self._process.wait()}")

    def tell(self, command: str) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def answers(self) -> dict[str, int]:
        """Return how many chat requests the server of each node has answered."""
        return {
            home.name: sum(
                log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP')
                for log in home.glob("run/vllm-py/*/server*.log*")
            )
            for home in self.folder.glob("mac-*")
        }


@pytest.fixture(scope="module")
def ray_python(machine: None) -> Path:
    """Ray and this package in an environment of their own."""
    python = ROOT / ".test-runtime" / "ray" / "bin" / "python"
    tool = uv.find_uv_bin()
    if not python.exists():
        subprocess.run([tool, "venv", "--quiet", str(python.parents[1])], check=True)
    # Ray ends a node whose agents take more than a few seconds to be imported.
    install = [
        tool,
        "pip",
        "install",
        "--quiet",
        "--compile-bytecode",
        "--python",
        str(python),
        RAY,
    ]
    subprocess.run([*install, "--requirements", str(ROOT / "pyproject.toml")], check=True)
    return python


@pytest.fixture(scope="module")
def cluster(
    ray_python: Path,
    smollm2: str,
    fast_cpu: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    free_port: int,
) -> Iterator[Cluster]:
    """Two nodes, and the application of the example with a replica on each."""
    folder = tmp_path_factory.mktemp("ray")
    variables = {
        "MODEL": smollm2,
        "API_KEY": KEY,
        "MIN_REPLICAS": "2",
        "MAX_REPLICAS": "2",
        "PYTHONPATH": str(ROOT),
        **fast_cpu,
    }
    with (folder / "errors.log").open("w") as errors:
        process = subprocess.Popen(
            [ray_python, Path(__file__).with_name("ray_cluster.py"), folder, str(free_port)],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            cluster = Cluster(process, f"http://127.0.0.1:{free_port}/v1", smollm2, folder)
            try:
                event = cluster.hear()
                assert event["event"] == "up", (event, (folder / "errors.log").read_text())
                yield cluster
                process.communicate(timeout=PATIENCE)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(llm: ChatVllmMlx, number: int) -> tuple[str, int]:
    """Ask until there is a whole answer, as a program would.

    Returns:
        The text, and how many times it broke.
    """
    for attempt in range(10):
        try:
            if number % 2:
                return llm.invoke("Count from one to five.").text, attempt
            return "".join(c.text for c in llm.stream("Count from one to five.")), attempt
        except CarVllmError as error:
            if not error.is_retryable:
                raise
            time.sleep(1)
    raise AssertionError(f"request {number} was lost")


def test_a_killed_replica_and_a_drained_node_lose_nothing(cluster: Cluster):
    """32 requests while a replica is killed and a node leaves: all are whole, on both servers.

    A stream that breaks is an error, never a short answer; it is asked again by who wants it.
    """
    llm = ChatVllmMlx(
        model=cluster.model,
        base_url=cluster.url,
        api_key=KEY,
        temperature=0,
        max_tokens=16,
        max_retries=4,
    )
    whole, _ = ask(llm, 0)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, llm, number) for number in range(REQUESTS)]
        asked[4].result()
        cluster.tell("kill")
        assert cluster.hear()["event"] == "killed"
        asked[16].result()
        cluster.tell("wait")
        assert cluster.hear()["event"] == "whole"
        cluster.tell("drain")
        assert cluster.hear()["event"] == "draining"
        found = [future.result() for future in asked]
        assert cluster.hear()["event"] == "drained"
    assert {text for text, _ in found} == {whole}
    counts = cluster.answers()
    assert min(counts["mac-1"], counts["mac-2"]) > 3, counts
    print("broken and asked again:", sum(broken for _, broken in found), "answers:", counts)
    after, _ = ask(llm, 0)
    assert after == whole
    [state] = [read_state(path) for path in cluster.folder.glob("mac-2/run/vllm-py/*/state.json")]
    assert state is not None
    assert state.phase == "stopped"


def test_a_wrong_key_is_refused_by_each_replica(cluster: Cluster):
    """The key is the application's, whichever server answers."""
    llm = ChatVllmMlx(model=cluster.model, base_url=cluster.url, api_key="sk-wrong")
    for _ in range(4):
        with pytest.raises(AuthenticationError):
            llm.invoke("Hello")
