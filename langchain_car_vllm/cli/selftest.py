"""`doctor --selftest`: a tiny server under the real supervisor, shared, killed and stopped.

It proves on a user's own machine what the package promises of processes and ports, in a temporary
`CAR_HOME`, without a model or `vllm-mlx`.
"""

import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import psutil

from langchain_car_vllm.cli.findings import Finding, check
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.environment import CAR_HOME, CAR_VLLM_MLX_BIN, overridden
from langchain_car_vllm.errors import ServerCrashedError, ServerStoppedError
from langchain_car_vllm.runtime.console_scripts import console_script
from langchain_car_vllm.server import (
    Lease,
    Policy,
    ServerSpec,
    directory_of,
    lease,
    running_servers,
    stop_server,
)
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.port import is_free
from langchain_car_vllm.server.state import State, read_state

_PATIENCE = 20.0
_POLICY = Policy(idle_tick=0.1, backoff=(0.1,), stop_grace=2.0)
_CLIENT = """
import sys
from langchain_car_vllm.server import Policy, ServerSpec, lease
spec = ServerSpec.from_dict({spec!r})
with lease(spec, policy=Policy.from_dict({policy!r})) as held:
    print(held.endpoint.generation, flush=True)
    sys.stdin.read()
"""


@contextmanager
def selftests() -> Iterator[list[tuple[str, Callable[[], str]]]]:
    """Set up a machine of its own and yield the steps; at the end nothing of it is left."""
    with TemporaryDirectory(prefix="car-vllm-selftest-") as folder, ExitStack() as stack:
        root = Path(folder).resolve()
        variables = {
            CAR_HOME.name: str(root / "home"),
            CAR_VLLM_MLX_BIN.name: str(_install_tiny_server(root)),
        }
        stack.enter_context(overridden(variables))
        stack.callback(_end_everything, root)
        trial = _Trial(_model(root))
        yield [
            ("selftest start", trial.start),
            ("selftest share", trial.share),
            ("selftest privacy", trial.privacy),
            ("selftest stop under a request", trial.stop_under_request),
            ("selftest killed server", trial.kill_server),
            ("selftest killed supervisor", trial.kill_supervisor),
            ("selftest killed client", trial.kill_client),
            ("selftest leftovers", lambda: _leftovers(root)),
        ]


class _Trial:
    """The steps; each starts the server where the one before ended it."""

    def __init__(self, model: Path) -> None:
        self._spec = ServerSpec(str(model), str(model), keep_alive=60.0)
        self._directory = directory_of(self._spec)

    def start(self) -> str:
        """A supervisor starts the server, and it is ready."""
        began = time.monotonic()
        with self._lease() as held:
            check(held.endpoint.generation == 1, "the first start is not counted as the first")
        return f"ready after {time.monotonic() - began:.1f} s"

    def share(self) -> str:
        """Another process gets the same server."""
        state = self._ready()
        with self._client(self._spec) as client:
            said = _first_line(client)
        check(said == str(state.generation), f"another process got generation `{said}`")
        return "another process uses the same server"

    def privacy(self) -> str:
        """The key opens the server, a wrong one does not, and files are the user's alone."""
        state = self._ready()
        endpoint = state.endpoint(self._directory.log)
        check(_status(endpoint, endpoint.api_key or "") == http.client.OK, "the key is refused")
        check(_status(endpoint, "wrong") != http.client.OK, "a wrong key is accepted")
        for path in (self._directory.path, self._directory.state, self._directory.log):
            check(not path.stat().st_mode & 0o077, f"`{path.name}` is readable by others")
        return "only the key opens the server, only you can read its files"

    def stop_under_request(self) -> str:
        """A stop ends a request under way, the process and its port."""
        self._ready()
        with self._lease() as held:
            connection = _endless_request(held.endpoint)
            state = _state(self._directory)
            stop_server(self._directory, policy=_POLICY)
            connection.close()
            said = held.explain()
        check(isinstance(said, ServerStoppedError), f"the request got `{said!r}`")
        _check_gone(self._directory, state)
        return "a stop ends the requests, the process and its port"

    def kill_server(self) -> str:
        """A killed server is told from a stopped one, and comes back."""
        before = self._ready()
        with self._lease() as held:
            connection = _endless_request(held.endpoint)
            _kill(before.server.pid if before.server else None)
            connection.close()
            said = held.explain()
        check(isinstance(said, ServerCrashedError), f"the request got `{said!r}`")
        after = self._ready()
        check(after.generation == before.generation + 1, "it was not started again")
        return "its death is reported, and the next call starts it again"

    def kill_supervisor(self) -> str:
        """A server does not outlive its supervisor."""
        state = self._ready()
        _kill(state.supervisor.pid)
        began = time.monotonic()
        _check_gone(self._directory, state)
        taken = time.monotonic() - began
        again = self._ready()
        check(again.generation == state.generation + 1, "it was not started again")
        return f"its server was gone after {taken:.1f} s, and the next call starts it again"

    def kill_client(self) -> str:
        """A client that is killed under a request keeps no server alive."""
        # Of a key of its own: the wishes of this very process keep the other server alive.
        spec = dataclasses.replace(self._spec, keep_alive=0.5, server_args=("--of-client",))
        directory = directory_of(spec)
        with self._client(spec) as client:
            _first_line(client)
            state = _state(directory)
            client.kill()
            client.wait()
        _check_gone(directory, state)
        reason = _state(directory).reason
        check(reason == "idle", f"the server stopped for the reason `{reason}`")
        return "its server stops when it is idle"

    def _lease(self) -> AbstractContextManager[Lease]:
        return lease(self._spec, startup_timeout=_PATIENCE, policy=_POLICY)

    def _ready(self) -> State:
        with self._lease():
            return _state(self._directory)

    @contextmanager
    def _client(self, spec: ServerSpec) -> Iterator[subprocess.Popen[str]]:
        code = _CLIENT.format(spec=spec.to_dict(), policy=_POLICY.to_dict())
        client = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield client
            if client.poll() is None:
                client.communicate(timeout=_PATIENCE)
        finally:
            client.kill()
            client.communicate()


def _state(directory: ServerDirectory) -> State:
    state = read_state(directory.state)
    if state is None:
        raise Finding("there is no state")
    return state


def _check_gone(directory: ServerDirectory, state: State) -> None:
    """Wait until neither server nor supervisor live and the port is free."""
    with opened_lock(directory.supervisor_lock) as lock:
        _eventually(
            lambda: (
                not (state.server and state.server.find())
                and is_free(state.port or 0)
                and not is_held(lock)
            ),
            "the server is still running",
        )


def _install_tiny_server(root: Path) -> Path:
    """Write the tiny server as a console script that names this Python."""
    binary = root / "environment" / "bin" / "vllm-mlx"
    binary.parent.mkdir(parents=True)
    script = Path(__file__).with_name("tiny_server.py").read_text(encoding="utf-8")
    binary.write_text(console_script(Path(sys.executable), script), encoding="utf-8")
    binary.chmod(0o700)
    return binary


def _model(root: Path) -> Path:
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (model / "tokenizer.json").write_text("{}", encoding="utf-8")
    header = json.dumps({"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    weights = len(header).to_bytes(8, "little") + header
    (model / "model.safetensors").write_bytes(weights)
    return model


def _end_everything(root: Path) -> None:
    _stop_all()
    for process in _processes_of(root):
        process.kill()


def _stop_all() -> None:
    for directory, _ in running_servers():
        stop_server(directory, policy=_POLICY)


def _leftovers(root: Path) -> str:
    _stop_all()
    _eventually(lambda: not _processes_of(root), "processes are left")
    return "no process is left"


def _processes_of(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or ()
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and any(str(root) in word for word in words):
            found.append(process)
    return found


def _status(endpoint: Endpoint, key: str) -> int:
    with closing(_connection(endpoint)) as connection:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status


def _endless_request(endpoint: Endpoint) -> http.client.HTTPConnection:
    """Begin a request that is under way until the server ends."""
    connection = _connection(endpoint)
    connection.request("POST", "/v1/chat/completions", b"{}")
    connection.getresponse().readline()
    return connection


def _connection(endpoint: Endpoint) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint.base_url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE)


def _first_line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip() if process.stdout else ""


def _kill(pid: int | None) -> None:
    if pid is None:
        raise Finding("there is no process to kill")
    os.kill(pid, signal.SIGKILL)


def _eventually(condition: Callable[[], bool], said: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Finding(f"{said} after {_PATIENCE:.0f} s")
        time.sleep(0.02)
