"""Runs clients, kills at random, and looks after every step at what must hold."""

import dataclasses
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from fakes.weights import write_sparse_weights
from faults.support import FAST, NONCE, Fake, bearers_of

from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.server import directory_of, running_servers, stop_server
from langchain_car_vllm.server.directory import server_directories
from langchain_car_vllm.server.state import read_state

CLIENTS = 6
CALLS_OF_A_LIFE = 5
POLICY = dataclasses.replace(
    FAST,
    crash_budget=1_000_000,
    drain_patience=2.0,
    load_stall=60.0,
    # Two threads of a client may want three models: the one ends its request and makes room.
    own_memory=6.0,
)
FAULT_GRACE = 15.0
"""Seconds after a fault within which a call may fail for it: on a loaded machine news is slow."""
LONGEST_CALL = 120.0
QUIET = 60.0
MOST_DESCRIPTORS = 64
MOST_RSS = 80_000_000
ALLOWED = {"ServerStoppedError", "ServerCrashedError", "ServerStartError", "ServerBusyError"}
"""What docs/supervision.md promises to requests whose server or supervisor was ended."""
BYSTANDER = """
import signal, sys, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, lambda n, f: print(n, flush=True))
    except (OSError, ValueError):
        pass
print("up", flush=True)
sys.stdin.read()
"""


class Client:
    """A client process, and what it says."""

    def __init__(self, soak: "Soak") -> None:
        script = Path(__file__).with_name("client.py")
        seed = str(soak.choices.randrange(2**31))
        self.process = subprocess.Popen(
            [sys.executable, str(script), seed, *soak.models],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=soak.errors,
            text=True,
            start_new_session=True,
        )
        self.calls = 0
        self.open: dict[tuple[str, float], float] = {}
        self._soak = soak
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def end(self) -> None:
        """Kill it, and close what leads to it."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):  # a killed one's last line may be torn
                self._soak.note(self, json.loads(line))


class Soak:
    """One run.

    Args:
        seed: Of all choices; the machine's own timing is not in it.
        seconds: How long faults are made.
        root: An empty folder.
    """

    def __init__(self, seed: int, seconds: float, root: Path) -> None:
        self.choices = random.Random(seed)
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._seconds = seconds
        self._faults: list[tuple[float, str | None]] = []
        self._mutex = threading.Lock()
        self._failures: list[dict[str, Any]] = []
        self._suspended: list[tuple[float, int]] = []
        (root / "home").mkdir(exist_ok=True)
        self.nonce = secrets.token_hex(16)
        os.environ.update(
            {
                "HOME": str(root / "home"),
                NONCE: self.nonce,
                "CAR_VLLM_MLX_MEMORY_GB": "2.6",
                "SOAK_POLICY": json.dumps(POLICY.to_dict()),
                "PYTHONPATH": os.pathsep.join([*sys.path[:1], str(Path(__file__).parents[2])]),
            }
        )
        self.fake = Fake(root / "fake")
        os.environ["CAR_VLLM_MLX_BIN"] = str(self.fake.binary)
        self.fake.switch(echo=True, token_pause=0.02)
        self.models = []
        for number in range(3):
            folder = root / f"model{number}"
            shutil.copytree(self.fake.model, folder)
            write_sparse_weights(folder / "model.safetensors", 1_000_000_000)
            self.models.append(str(folder))
        self.errors = (root / "errors.log").open("w")
        self.clients: list[Client] = []

    def note(self, client: Client, entry: dict[str, Any]) -> None:
        """Judge what a client says of a call."""
        if "descriptors" in entry:
            if entry["descriptors"] > MOST_DESCRIPTORS:
                self.violate(f"{entry['descriptors']} descriptors are open in a client")
            return
        if entry["call"] == "gentle":  # it may stop a server under others
            self._blame(entry["model"])
        key = entry["call"], entry["began"]
        if "ended" not in entry:
            client.open[key] = entry["began"]
            return
        client.open.pop(key, None)
        self.counts["calls"] += 1
        client.calls += 1
        if entry.get("wrong"):
            self.violate(f"wrong answer: {entry}")
        if "error" not in entry:
            return
        name = entry["error"][0]
        self.counts[name] += 1
        if (entry["call"], name) != ("gentle", "ServerBusyError"):
            self._failures.append(entry)

    def _judge_failures(self) -> None:
        """Look for what was done to each call that failed, once all that was done is known."""
        for entry in self._failures:
            is_excused = any(
                entry["began"] - FAULT_GRACE < moment < entry["ended"]
                and model in (None, entry["model"])
                for moment, model in self._faults
            )
            if not is_excused or not ALLOWED & set(entry["error"]):
                self.violate(f"error that nothing explains: {entry}")

    def violate(self, what: str) -> None:
        """Note that something does not hold."""
        if len(self.violations) < 20:
            self.violations.append(f"{time.strftime('%H:%M:%S')} {what}")

    def run(self) -> None:
        """Make faults for the given time, then wait for quiet."""
        bystander = subprocess.Popen(
            [sys.executable, "-c", BYSTANDER, "serve", *self.models],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, NONCE: "bystander"},
        )
        assert bystander.stdout is not None
        assert bystander.stdout.readline() == "up\n"
        try:
            self.clients = [Client(self) for _ in range(CLIENTS)]
            over = time.monotonic() + self._seconds
            while time.monotonic() < over:
                time.sleep(self.choices.uniform(0.1, 0.6))
                self._make_fault()
                self._resume(time.monotonic())
                self._look()
            self._resume(float("inf"))
            self._end_clients()
            self._judge_failures()
            self._wait_for_quiet()
        finally:
            for client in self.clients:
                client.end()
            self.errors.close()
            heard, _ = bystander.communicate()
            if heard:
                self.violate(f"a foreign process was signalled: {heard}")
            for process in bearers_of(self.nonce):
                with suppress(psutil.Error):
                    process.kill()

    def _make_fault(self) -> None:
        model = self.choices.choice(self.models)
        state = read_state(directory_of(self._spec(model)).state)
        server = state.server if state else None
        kind = self.choices.choice(
            ["server", "supervisor", "client", "suspend", "stop", "gentle stop", "none", "none"]
        )
        if kind == "client":
            number = self.choices.randrange(CLIENTS)
            if self.clients[number].calls < CALLS_OF_A_LIFE:  # it takes seconds to begin
                return
            self._replace(number)
        elif kind == "suspend":
            victims = [c.process.pid for c in self.clients]
            victims += [i.pid for i in (server, state and state.supervisor) if i and i.find()]
            self._suspend(self.choices.choice(victims))
        elif kind in ("server", "supervisor"):
            victim = server if kind == "server" else state and state.supervisor
            process = victim.find() if victim else None
            if process is None:
                return
            self._blame(model)
            with suppress(psutil.Error):
                process.kill()
        elif "stop" in kind:
            self._blame(model)
            with suppress(CarVllmError):
                stop_server(directory_of(self._spec(model)), force=kind == "stop", policy=POLICY)
            self._blame(model)
        self.counts[f"fault: {kind}"] += 1

    def _spec(self, model: str) -> Any:
        return self.fake.spec(source=model, served_name=model)

    def _blame(self, model: str | None) -> None:
        with self._mutex:
            self._faults.append((time.monotonic(), model))

    def _replace(self, number: int) -> None:
        client = self.clients[number]
        client.end()
        self.clients[number] = Client(self)

    def _suspend(self, pid: int) -> None:
        self._blame(None)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._suspended.append((time.monotonic() + self.choices.uniform(0.1, 2.0), pid))

    def _resume(self, now: float) -> None:
        for due, pid in list(self._suspended):
            if due <= now:
                self._suspended.remove((due, pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                self._blame(None)

    def _look(self) -> None:
        """Look at what must hold at any moment."""
        servers: Counter[str] = Counter()
        for process in bearers_of(self.nonce):
            with suppress(psutil.Error, ProcessLookupError):
                command = process.cmdline()
                leads = os.getpgid(process.pid) == process.pid
                if "serve" in command and leads:
                    servers[command[command.index("serve") + 1]] += 1
                if "langchain_car_vllm.server.supervisor" in command:
                    self._look_at_supervisor(process)
        for model, count in servers.items():
            if count > 1:
                self.violate(f"{count} servers of {model}")
        self._look_at_calls(time.monotonic())
        if len(server_directories()) > len(self.models):
            self.violate(f"{len(server_directories())} keys for {len(self.models)} models")

    def _look_at_calls(self, now: float) -> None:
        for client in self.clients:
            for (call, _), began in list(client.open.items()):
                if now - began > LONGEST_CALL:
                    client.open.clear()
                    self.violate(f"{call} has not ended for {now - began:.0f} s")

    def _look_at_supervisor(self, process: psutil.Process) -> None:
        self.counts["most supervisor RSS"] = max(
            self.counts["most supervisor RSS"], rss := process.memory_info().rss
        )
        if rss > MOST_RSS or process.num_fds() > MOST_DESCRIPTORS:
            self.violate(f"a supervisor has {rss} bytes and {process.num_fds()} descriptors")

    def _end_clients(self) -> None:
        for client in self.clients:
            assert client.process.stdin is not None
            client.process.stdin.close()
        give_up_at = time.monotonic() + LONGEST_CALL
        for client in self.clients:
            try:
                client.process.wait(max(0.1, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.violate(f"a client does not end; under way: {list(client.open)}")
            client.reader.join(1)

    def _wait_for_quiet(self) -> None:
        """Nobody is left once all keep_alives are over, nothing is set aside or held."""
        give_up_at = time.monotonic() + QUIET
        while left := bearers_of(self.nonce):
            if time.monotonic() > give_up_at:
                commands = [" ".join(p.cmdline())[-120:] for p in left]
                self.violate(f"left over: {commands}; {running_servers()}")
                return
            time.sleep(0.1)
        for directory in server_directories():
            state = read_state(directory.state)
            if state is None or state.phase != "stopped" or state.reservation:
                # The last supervisor was killed: the next look cleans up after it.
                stop_server(directory, policy=POLICY)
        self.counts["generations"] = sum(
            state.generation
            for directory in server_directories()
            if (state := read_state(directory.state)) is not None
        )
