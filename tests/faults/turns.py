"""What tests of admission share: a server that tells its status, gates in front of it, senders."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from faults.support import eventually

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.tickets import read_tickets


class Server:
    """Tells what it works on, as the real one's `/v1/status` does.

    Attributes:
        requests: What it lists.
        looks: How often it was asked.
        under_way: How many requests it says to have, None where it does not count them.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.looks = 0
        self.under_way: int | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                server.looks += 1
                raw = json.dumps({"requests": server.requests}).encode()
                self.send_response(200 if self.path == "/v1/status" else 404)
                self.send_header("content-length", str(len(raw)))
                if server.under_way is not None:
                    self.send_header("x-requests-under-way", str(server.under_way))
                self.end_headers()
                self.wfile.write(raw)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def directory(tmp_path: Path) -> ServerDirectory:
    made = ServerDirectory(tmp_path / "key")
    made.create()
    return made


Make = Callable[..., Admission]


@pytest.fixture
def admission(directory: ServerDirectory, server: Server) -> Iterator[Make]:
    """Return a factory of gates of one batched multimodal server."""
    made = []

    def make(*, patience: float = 0.2, tick: float = 0.001, **serving: object) -> Admission:
        facts = {"engine": "batched", "multimodal": True, **serving}
        endpoint = Endpoint(
            base_url=server.url, api_key="k", served_model="m", generation=1, **facts
        )
        made.append(Admission(directory, endpoint, None, tick, patience))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


def enters(gate: Admission, tokens: int = 10, *, late: bool = False) -> bool:
    return gate.try_enter(tokens, arrives_late=late)


def enter(gate: Admission, tokens: int = 10, *, late: bool = False) -> None:
    eventually(lambda: enters(gate, tokens, late=late), "the gate to open")


def tickets(directory: ServerDirectory) -> list[str]:
    return [ticket.stage for ticket in sorted(read_tickets(directory.turns, 1))]


SENDER = """
import os, sys, time
from pathlib import Path
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.directory import ServerDirectory
endpoint = Endpoint(base_url={url!r}, api_key="k", served_model="m", generation=1,
                    engine="batched", multimodal=True)
gate = Admission(ServerDirectory(Path({path!r})), endpoint, None, 0.001)
while not gate.try_enter(1, arrives_late=False):
    time.sleep(0.001)
print("entered", flush=True)
{then}
sys.stdin.readline()
gate.begin()
print("began", flush=True)
sys.stdin.readline()
gate.leave(is_over=True)
"""


def sender(
    directory: ServerDirectory, server: Server, then: str = "", url: str | None = None
) -> "subprocess.Popen[str]":
    code = SENDER.format(url=url or server.url, path=str(directory.path), then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line_of(process: "subprocess.Popen[str]", **then: str) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
