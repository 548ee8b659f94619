"""Whoever answers in the Hub's place can neither keep a caller waiting nor fill the memory."""

import json
import socket
import threading
import time
from contextlib import suppress

import pytest

from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models import hub, proxies

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LISTING = {"siblings": [{"rfilename": "config.json", "size": 2}]}


@pytest.fixture
def answering(monkeypatch, socket_enabled):
    """Have a peer answer with pieces until the caller hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    pieces = []

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), connection:
                    connection.recv(4096)
                    for piece, pause in pieces[0]():
                        connection.sendall(piece)
                        time.sleep(pause)

    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    threading.Thread(target=serve, daemon=True).start()
    yield pieces.append
    listener.close()


def forever(piece, pause=0.0, head=HEAD + b"\r\n"):
    def produce():
        yield head, 0
        while True:
            yield piece, pause

    return produce


def once(body):
    def produce():
        yield HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body, 0

    return produce


@pytest.mark.parametrize(
    "answer",
    [
        forever(b" ", 0.05),
        forever(b"X: y\r\n", 0.05, head=HEAD),
        forever(b"", 0.05),
        forever(b"H", 0.05, head=b""),
    ],
    ids=["body", "headers", "silence", "status"],
)
def test_a_drip_ends_at_the_deadline(answering, monkeypatch, answer):
    """A byte now and then never comes late by itself; all together do."""
    monkeypatch.setattr(hub, "_DEADLINE", 0.5)
    answering(answer)
    began = time.monotonic()
    with pytest.raises(ModelDownloadError) as caught:
        hub.ask_hub_model("org/x")
    assert time.monotonic() - began < 10
    assert caught.value.hint


def test_a_flood_is_cut(answering, monkeypatch):
    """More than any listing holds is no listing."""
    monkeypatch.setattr(hub, "_MOST_LISTED", 1_000_000)
    answering(forever(b"x" * 65536))
    with pytest.raises(ModelDownloadError, match="more than 1 MB"):
        hub.ask_hub_model("org/x")


ODD = {
    "deep": b"[" * 200_000,
    "deep object": b'{"siblings":' * 100_000,
    "infinite size": b'{"siblings": [{"rfilename": "config.json", "size": 1e999}]}',
    "huge number": b'{"siblings": [{"rfilename": "x", "size": ' + b"9" * 9999 + b"}]}",
    "nameless": b'{"siblings": [{}]}',
    "name of a number": b'{"siblings": [{"rfilename": 5}]}',
    "name of half a character": b'{"siblings": [{"rfilename": "\\ud800config.json"}]}',
    "null": b"null",
    "no text": b"\xff\xfe",
    "empty": b"",
    "control": b"\x1b]52;c;aGk=\x07",
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_an_odd_listing_is_told(answering, body):
    """Nothing that JSON can hold leads to an error of another kind, or to the terminal."""
    answering(once(body))
    with pytest.raises(ModelDownloadError) as caught:
        hub.ask_hub_model("org/x")
    assert "\x1b" not in str(caught.value)


def test_a_listing_without_weights_is_told(answering):
    """A repository of settings alone is not a model."""
    answering(once(json.dumps(LISTING).encode()))
    with pytest.raises(ModelDownloadError, match="has no model"):
        hub.ask_hub_model("org/x")


def test_silence_is_left_before_the_deadline(answering, monkeypatch):
    """The rest of the time is for what answers slowly."""
    monkeypatch.setattr(proxies, "_STEP", 0.3)
    answering(forever(b"", 0.05))
    began = time.monotonic()
    with pytest.raises(ModelDownloadError, match="cannot be reached"):
        hub.ask_hub_model("org/x")
    assert time.monotonic() - began < hub._DEADLINE / 2
