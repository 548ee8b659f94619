"""Ports and probes against real sockets."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server import health_ok
from langchain_car_vllm.server.client import status_look
from langchain_car_vllm.server.client.status_look import StatusLook
from langchain_car_vllm.server.port import HeldPort, is_free
from langchain_car_vllm.server.supervisor.readiness import failed_test


@pytest.fixture
def server():
    """Answers every path with the status it names, such as `/204/health`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status = self.path.split("/")[1]
            self.send_response(int(status) if status.isdigit() else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize("status", [200, 204, 299])
def test_health_is_any_2xx(server: str, status: int):
    """Any success counts, with and without a slash at the end."""
    assert health_ok(f"{server}/{status}", 2)
    assert health_ok(f"{server}/{status}/", 2)


@pytest.mark.parametrize("status", [301, 404, 500])
def test_health_is_nothing_else(server: str, status: int):
    """Redirects and errors do not count."""
    assert not health_ok(f"{server}/{status}", 2)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "nonsense", "http://", "http://127.0.0.1:notaport", ""]
)
def test_health_never_raises(endpoint: str):
    """Whatever is wrong, the answer is False."""
    assert not health_ok(endpoint, 0.5)


ODD = {
    "status-drip": b"HTTP/1.1 2",
    "header-drip": b"HTTP/1.1 500 Oh\r\nx: ",
    "body-drip": b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n",
    "deep": b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n" + b"[" * 99999,
    "nothing": b"",
}


@contextmanager
def dripping(start: bytes) -> Iterator[str]:
    """Listen, and answer with a start and then a byte now and then."""
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(start)
            while start and not over.wait(0.05):
                connection.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("start", ODD.values(), ids=ODD)
def test_looks_end_in_time(monkeypatch: pytest.MonkeyPatch, start: bytes):
    """A byte now and then is always in time by itself; nothing that JSON can hold is an error."""
    monkeypatch.setattr(status_look, "_SECONDS", 0.3)
    with dripping(start) as root:
        began = time.monotonic()
        health_ok(root, 0.3)
    with dripping(start) as root:
        look = StatusLook(Endpoint(f"{root}/v1", "key", "m"))
        look.wait(10)
        assert look.is_over()
    assert look.requests is None
    assert time.monotonic() - began < 10


def test_a_stream_that_is_listed_twice_hides_no_request():
    """The simple engine lists a stream as a request and as the generation that it waits for."""
    listed = [
        {"request_id": "a", "phase": "prefill"},
        {"request_id": "b", "phase": "generation"},
        {"request_id": "simple-7f", "status": "running", "kind": "stream_generate"},
    ]
    body = json.dumps({"requests": listed}).encode()
    start = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-requests-under-way: 3\r\n\r\n"
    with dripping(start % len(body) + body) as root:
        look = StatusLook(Endpoint(f"{root}/v1", "key", "m"))
        look.wait(10)
    assert look.ids() == ["a", "b"]
    assert look.unlisted == 1


def test_health_gives_up_on_silence():
    """A listener that never answers costs the timeout, not more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not health_ok(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_held_port_is_refused_and_taken(platform: str):
    """Nobody can connect, a plain bind fails, and the server's own kind of bind still works."""
    held = HeldPort(platform)
    try:
        assert is_free(held.number)
        with socket.socket() as plain, pytest.raises(OSError, match="in use"):
            plain.bind(("127.0.0.1", held.number))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", held.number))
            server.listen()
            assert not is_free(held.number)
    finally:
        held.close()


def test_a_system_that_does_not_tell_who_listens_is_said_to(monkeypatch: pytest.MonkeyPatch):
    """A sandbox may forbid the question, and somebody may listen all the same."""

    def refuse(*_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "net_connections", refuse)
    failed = failed_test(9, os.getpgid(0), "m", "key", 1.0)
    assert failed is not None
    assert "does not show which process listens" in failed.sentence
    assert not failed.has_listener
