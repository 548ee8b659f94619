"""A fake installation, clients in processes of their own, and a bare HTTP client."""

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

import psutil
import pytest
from fakes.weights import weights_of

from langchain_car_vllm.server import Endpoint, Policy, ServerSpec, directory_of, lease, stop_server
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.state import State, read_state

FAKE = Path(__file__).parents[1] / "fakes" / "vllm-mlx"
PATIENCE = 60.0
NONCE = "VLLM_MLX_FAULT_SUITE"
T = TypeVar("T")

MakeModel = Callable[[float], ServerSpec]
FAST = Policy(
    idle_tick=0.02,
    start_tick=0.01,
    client_tick=0.01,
    load_stall=3.0,
    stop_grace=1.0,
    save_stall=1.0,
    save_limit=3.0,
    own_memory=0.5,
    stop_patience=1.0,
    drain_patience=5.0,
    suspended_patience=0.5,
    abandoned_patience=60.0,
    backoff=(0.02, 0.04, 0.06, 0.08, 0.1),
    crash_window=300.0,
)


class Fake:
    """The fake installation of one test.

    Attributes:
        binary: Its `vllm-mlx`.
        model: A directory that looks like a model.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.binary = root / "env" / "bin" / "vllm-mlx"
        self.binary.parent.mkdir(parents=True)
        script = FAKE.read_text().split("\n", 1)[1]
        self.binary.write_text(f"#!{sys.executable}\n{script}")
        self.binary.chmod(self.binary.stat().st_mode | stat.S_IXUSR)
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        metadata = root / "env" / site / "vllm_mlx-0.6.0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text("Metadata-Version: 2.1\nName: vllm-mlx\nVersion: 0.6.0\n")
        self.model = root / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(
            json.dumps({"model_type": "llama", "max_position_embeddings": 2048})
        )
        (self.model / "tokenizer.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(weights_of(64))
        self._starts = root / "starts"
        self.switch()

    def take_media(self) -> None:
        """Have the model take pictures, so that its server takes its multimodal route."""
        config = {"model_type": "qwen3_5", "vision_config": {}, "max_position_embeddings": 2048}
        (self.model / "config.json").write_text(json.dumps(config))

    def switch(self, **faults: object) -> None:
        """Set the fault switches of the next start."""
        path = self.root / "faults.json"
        path.write_text(json.dumps({"starts": str(self._starts), **faults}))
        os.environ["VLLM_MLX_FAKE"] = str(path)

    def starts(self) -> list[int]:
        """Return the process ids of all starts so far."""
        return [int(n) for n in self._starts.read_text().split()] if self._starts.exists() else []

    def spec(self, **changes: object) -> ServerSpec:
        """Return a spec of the fake model."""
        fields = {"source": str(self.model), "served_name": str(self.model), "keep_alive": 60.0}
        return ServerSpec(**{**fields, **changes})

    def stop(self, **changes: object) -> None:
        """Stop the server of `spec(**changes)`."""
        stop_server(self.directory(**changes), policy=FAST)

    def open_gate(self, name: str) -> None:
        """Let whatever waits for the gate go on."""
        Path(self.gate(name)).touch()

    def gate_is_awaited(self) -> bool:
        """Tell whether the server has come to its load gate."""
        return Path(f"{self.gate('load')}.awaited").exists()

    def gate(self, name: str) -> str:
        """Return the path of a gate, closed until it is opened."""
        return str(self.root / f"gate-{name}")

    def directory(self, **changes: object) -> ServerDirectory:
        """Return the run directory of `spec(**changes)`."""
        return directory_of(self.spec(**changes))

    def state(self, **changes: object) -> State:
        """Return the state of `spec(**changes)`, which must exist."""
        state = read_state(self.directory(**changes).state)
        assert state is not None
        return state

    def wait_for_phase(self, *phases: str, **changes: object) -> State:
        """Wait until the state is in one of `phases`."""

        def reached() -> State | None:
            state = read_state(self.directory(**changes).state)
            return state if state and state.phase in phases else None

        return eventually(reached, f"phase {phases}")

    def wait_until_unsupervised(self, patience: float = PATIENCE, **changes: object) -> None:
        """Wait until no supervisor holds the key's lock."""
        with opened_lock(self.directory(**changes).supervisor_lock) as descriptor:
            eventually(lambda: not is_held(descriptor), "the end of the supervisor", patience)


def error_of_lease(fake: Fake, **changes: object) -> BaseException | None:
    """Lease the fake's server once and tell how that failed; a busy machine is no failure."""
    try:
        with lease(fake.spec(**changes), policy=FAST, startup_timeout=PATIENCE):
            return None
    except BaseException as error:  # noqa: BLE001
        return error


@contextmanager
def run_in_this_process(*arguments: str) -> Iterator[None]:
    """Have the command line, run here, see the arguments, and keep its ending from ending us."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["car-vllm", *arguments])
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def forked_child() -> Iterator[None]:
    """Fork a child that does nothing until the end of the block."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def eventually(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Poll a condition until it is true and return its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(0.005)
    return value


class Stream:
    """A streamed answer, read token by token over a bare connection."""

    def __init__(self, endpoint: Endpoint, tokens: int = 3) -> None:
        self._connection = _connect(endpoint)
        self._connection.request("POST", "/v1/chat/completions", *_request(endpoint, tokens, True))
        self._response = self._connection.getresponse()
        assert self._response.status == 200

    def tokens(self) -> Iterator[str]:
        """Yield the text of each chunk that has one."""
        while line := self._response.readline():
            if line.startswith(b"data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                if "content" in delta:
                    yield delta["content"]

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()


def ask(endpoint: Endpoint, tokens: int = 3) -> str:
    """Return one whole answer over a bare connection."""
    connection = _connect(endpoint)
    try:
        connection.request("POST", "/v1/chat/completions", *_request(endpoint, tokens, False))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.load(response)["choices"][0]["message"]["content"]
    finally:
        connection.close()


def _connect(endpoint: Endpoint) -> http.client.HTTPConnection:
    host, port = endpoint.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    return http.client.HTTPConnection(host, int(port), timeout=PATIENCE)


def _request(endpoint: Endpoint, tokens: int, stream: bool) -> tuple[str, dict[str, str]]:
    body = {"model": endpoint.served_model, "messages": [], "max_tokens": tokens, "stream": stream}
    return json.dumps(body), {"Authorization": f"Bearer {endpoint.api_key}"}


class ClientProcess:
    """A process that takes a lease and holds it until it is told to end, or is killed.

    Args:
        fake: Its installation.
        then: Python to run while the lease `held` is held.
        between_requests: Whether it gives the lease back before it waits.
        policy: Its timings.
        changes: Of the spec.
    """

    def __init__(
        self,
        fake: Fake,
        then: str = "",
        *,
        between_requests: bool = False,
        policy: Policy = FAST,
        **changes,
    ) -> None:
        wait = "sys.stdin.read()"
        fields = {
            "source": str(fake.model),
            "served_name": str(fake.model),
            "keep_alive": 60.0,
            **changes,
        }
        code = f"""
import sys
from langchain_car_vllm.server import Policy, ServerSpec, lease
spec = ServerSpec(**{fields!r})
policy = Policy.from_dict({policy.to_dict()!r})
print("began", flush=True)
with lease(spec, policy=policy) as held:
    print("leased", held.endpoint.generation, flush=True)
    {then}
    {"" if between_requests else wait}
print("released", flush=True)
{wait if between_requests else ""}
"""
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def read(self) -> str:
        """Return the next line it prints, empty at its end."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill it as the kernel would for want of memory."""
        self._process.kill()
        self._process.communicate()

    def finish(self) -> str:
        """Let it give its lease back, and return what it still printed."""
        output, _ = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, output
        return output


def altered_supervisor(folder: Path, code: str) -> Path:
    """Return a Python for CAR_VLLM_PYTHON that runs `code` before the supervisor's own."""
    prelude = folder / "prelude.py"
    prelude.write_text(
        f"import os, runpy, sys, time\n{code}\n"
        "sys.argv.pop(0)\nrunpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    python = folder / "altered-python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {prelude} "$@"\n')
    python.chmod(0o755)
    return python


can_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounting needs root on Linux"
)


def fill(folder: Path) -> None:
    """Use all the space of a small disk."""
    command = ["dd", "if=/dev/zero", f"of={folder / 'filler'}", "bs=4k"]
    assert b"No space" in subprocess.run(command, check=False, capture_output=True).stderr


def unguarded(fake: Fake) -> None:
    """Have servers of `fake` that no kernel ends when their supervisor dies."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    run = f"setpriv --pdeathsig clear {sys.executable} {real}"
    fake.binary.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    fake.binary.chmod(0o755)


def lose_supervisor(state: State) -> None:
    """Kill a supervisor and leave its server, which must be unguarded, behind."""
    assert state.server is not None
    for watcher in psutil.Process(state.server.pid).children():
        watcher.kill()
    os.kill(state.supervisor.pid, signal.SIGKILL)


class Background(threading.Thread, Generic[T]):
    """A call in a thread, whose outcome can be had later."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Make the call."""
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001
            self._error = error

    def result(self) -> T | None:
        """Wait for the outcome; raise what the call raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the call did not return"
        if self._error is not None:
            raise self._error
        return self._value


def bearers_of(nonce: str) -> list[psutil.Process]:
    """Return the live processes that inherited the nonce, whatever their command lines say."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if is_alive(process) and process.environ().get(NONCE) == nonce:
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process lives; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def processes_of(root: Path) -> list[psutil.Process]:
    """Return the live processes that have a path below `root` on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if is_alive(process) and any(str(root) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found
