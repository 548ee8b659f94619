"""A stranger on the port never hears a key or a prompt, before, during or after our server."""

import asyncio
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from faults.support import FAST, PATIENCE, Background, Fake, ask, can_mount, eventually, fill
from langchain_core.messages import HumanMessage

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ServerCrashedError, ServerStoppedError
from langchain_car_vllm.server import Endpoint, lease, stop_server
from langchain_car_vllm.server.port import is_free
from langchain_car_vllm.server.state import write_state
from langchain_car_vllm.wire.chat import WireChat
from langchain_car_vllm.wire.errors import ConnectionFailedError


class Stranger:
    """Listens on a port as our server would, answers 200 to all, and notes what it hears.

    Args:
        port: The one that it is after.
        name: The model that it claims to serve.
    """

    def __init__(self, port: int, name: str) -> None:
        self.heard: list[str] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                heard.append(f"{self.path} {self.headers} {self.rfile.read(length)!r}")
                body = f'{{"status": "healthy", "model_name": "{name}"}}'.encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def leave(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_port_stolen_between_probe_and_bind(fake: Fake):
    """A stranger that takes the port while our server loads keeps it and hears nothing."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__().endpoint)
    eventually(fake.starts, "the server to load")
    port = fake.state().port
    assert port is not None
    stranger = Stranger(port, fake.spec().served_name)
    try:
        fake.open_gate("load")
        endpoint = call.result()
        assert endpoint is not None
        assert not endpoint.base_url.endswith(f":{port}/v1")
        assert ask(endpoint)
        assert len(fake.starts()) == 2
    finally:
        stranger.leave()
    assert not stranger.heard


def test_nobody_can_take_the_port_of_a_live_server(fake: Fake):
    """While our server listens, not even a socket that would share its port gets it."""
    with lease(fake.spec(), policy=FAST):
        port = fake.state().port
        assert port is not None
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))


@pytest.mark.parametrize("keys", ["any key", "no key"])
def test_impostor_of_the_same_user_hears_no_key(fake: Fake, keys: str):
    """A process that took the port in our server's place is not believed, whatever it answers."""
    heard = fake.root / "heard"
    fake.switch(impostor=str(heard), impostor_accepts=keys == "any key")
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__())
    pid = Path(f"{heard}.pid")
    eventually(lambda: pid.exists() and pid.read_text(), "the stranger")
    try:
        port = fake.state().port
        assert port is not None
        eventually(lambda: not is_free(port), "the stranger to listen")
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            state = fake.state()
            assert state.phase == "load"
            assert state.api_key
            assert not heard.exists() or state.api_key not in heard.read_text()
        stop_server(fake.directory(), policy=FAST)
        with pytest.raises(ServerStoppedError):
            call.result()
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def die(fake: Fake, victim: str) -> int:
    """Kill the server or its supervisor, wait until the port is free, and return it."""
    state = fake.state()
    assert state.server is not None
    assert state.port is not None
    os.kill(state.server.pid if victim == "server" else state.supervisor.pid, signal.SIGKILL)
    fake.wait_until_unsupervised()
    port = state.port
    eventually(lambda: is_free(port), "the port to be free")
    return port


def client_of(endpoint: Endpoint) -> WireChat:
    """Return what the chat model sends its requests with."""
    return ChatVllmMlx(model=endpoint.served_model)._chat(endpoint)


def ask_in_vain(endpoint: Endpoint, way: str) -> None:
    chat, prompt = client_of(endpoint), [HumanMessage("a secret")]
    with pytest.raises(ConnectionFailedError, match="gone"):
        chat.invoke(prompt) if way == "sync" else asyncio.run(chat.ainvoke(prompt))


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_stranger_on_the_port_of_a_dead_server_hears_nothing(fake: Fake, victim: str, way: str):
    """A request that is sent after its server died says nothing to who listens there now."""
    with lease(fake.spec(), policy=FAST) as held:
        port = die(fake, victim)
        stranger = Stranger(port, fake.spec().served_name)
        try:
            ask_in_vain(held.endpoint, way)
            assert isinstance(held.explain(), ServerCrashedError)
        finally:
            stranger.leave()
    assert not stranger.heard


@pytest.mark.parametrize("way", ["sync", "async"])
def test_kept_connection_of_a_dead_server_is_not_renewed_to_a_stranger(fake: Fake, way: str):
    """A client that has talked to the server before does not go on with who took its port."""
    with lease(fake.spec(), policy=FAST) as held:
        assert client_of(held.endpoint).invoke([HumanMessage("hi")]).text
        port = die(fake, "server")
        stranger = Stranger(port, fake.spec().served_name)
        try:
            ask_in_vain(held.endpoint, way)
        finally:
            stranger.leave()
    assert not stranger.heard


def test_next_call_finds_its_own_server_again(fake: Fake):
    """The chat model's next call ignores the stranger and starts a server of its own."""
    model = ChatVllmMlx(model=str(fake.model), max_tokens=3)
    assert model.invoke("hi").text
    stranger = Stranger(die(fake, "supervisor"), fake.spec().served_name)
    try:
        assert model.invoke("hi").text.strip() == "tok0 tok1 tok2"
    finally:
        stranger.leave()
    assert not stranger.heard


@pytest.mark.parametrize("way", ["sync", "async"])
def test_stranger_on_the_port_of_a_stopping_server_hears_nothing(fake: Fake, way: str):
    """A server closes its listener before it saves and ends; its port is anybody's by then."""
    fake.switch(save_gate=fake.gate("save"))
    with lease(fake.spec(), policy=FAST) as held:
        port = fake.state().port
        assert port is not None
        stop = Background(lambda: stop_server(fake.directory(), policy=FAST))
        eventually(lambda: Path(f"{fake.gate('save')}.awaited").exists(), "the save")
        stranger = Stranger(port, fake.spec().served_name)
        try:
            assert held.endpoint.is_ours is not None
            assert not held.endpoint.is_ours()
            ask_in_vain(held.endpoint, way)
        finally:
            stranger.leave()
        fake.open_gate("save")
        stop.result()
        assert isinstance(held.explain(), ServerStoppedError)
    assert not stranger.heard


@can_mount
def test_server_whose_stop_cannot_be_told_does_not_linger_without_its_listener(
    fake: Fake, mount, monkeypatch: pytest.MonkeyPatch
):
    """On a full disk it is killed at once: clients would take its port for its own."""
    folder = mount("size=1m")
    monkeypatch.setenv("CAR_HOME", str(folder))
    fake.switch(save_gate=fake.gate("save"))
    with lease(fake.spec(), policy=FAST) as held:
        fill(folder)
        os.kill(fake.state().supervisor.pid, signal.SIGTERM)
        fake.wait_until_unsupervised()
        assert not Path(f"{fake.gate('save')}.awaited").exists()
        assert held.endpoint.is_ours is not None
        assert not held.endpoint.is_ours()
        (folder / "filler").unlink()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces need root on Linux"
)
@pytest.mark.parametrize("kinds", [["--net"], ["--pid", "--fork", "--mount-proc"]])
@pytest.mark.parametrize("phase", ["load", "ready"])
def test_server_of_another_container_is_refused(fake: Fake, kinds: list[str], phase: str):
    """Containers that share a home share neither ports nor process ids: the error says so."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__().endpoint)
    eventually(fake.gate_is_awaited, "the load")
    if phase == "ready":
        fake.open_gate("load")
        call.result()
    code = f"""
from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server import Policy, ServerSpec, lease
fields = {fake.spec().to_dict()!r}
try:
    lease(ServerSpec.from_dict(fields)).__enter__()
except StateDirectoryError as error:
    print(error)
"""
    command = ["unshare", *kinds, sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "another container on this machine uses it" in said.stdout, said
    assert "CAR_HOME" in said.stdout
    fake.open_gate("load")
    endpoint = call.result()
    assert endpoint is not None
    assert ask(endpoint)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces need root on Linux"
)
def test_dead_server_of_another_container_is_replaced(fake: Fake):
    """A container that was removed, and restarted as another one, leaves nothing that matters."""
    with lease(fake.spec(), policy=FAST):
        state = fake.state()
    os.kill(state.supervisor.pid, signal.SIGKILL)
    fake.wait_until_unsupervised()
    write_state(fake.directory().state, dataclasses.replace(state, network="net:[1]"))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
        assert held.endpoint.generation == 2
