"""Spawns a supervisor, unless somebody else just did."""

import json
import os
import secrets
import select
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from langchain_car_vllm.errors import CarVllmError, ConfigurationError, ServerStartError
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.locks import is_held, opened_lock, try_exclusive
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import decode_error

_PACKAGE_PARENT = Path(__file__).parents[2]


class NoReportError(ServerStartError):
    """The supervisor ended before it could report; another attempt may fare better."""


class Start(threading.Thread):
    """One attempt to have a supervisor, in a thread that no caller's cancellation can end.

    Args:
        directory: Of the server key; made if missing.
        spec: What to serve.
        policy: Handed to the supervisor.

    Attributes:
        error: Why there is no supervisor, None while unknown or where there is one.
    """

    def __init__(self, directory: ServerDirectory, spec: ServerSpec, policy: Policy) -> None:
        super().__init__(name=f"car-vllm-start-{directory.key}", daemon=True)
        self._directory = directory
        self._spec = spec
        self._policy = policy
        self.error: CarVllmError | None = None
        self.start()

    def run(self) -> None:
        """Hold `start.lock` over check, spawn and handshake."""
        try:
            self._start_under_lock()
        except CarVllmError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001
            self.error = ServerStartError(f"the supervisor could not be started: {error!r}")

    def _start_under_lock(self) -> None:
        self._directory.create()
        with ExitStack() as stack:
            with explain_os_errors(self._directory.path):
                lock = stack.enter_context(opened_lock(self._directory.start_lock))
                supervisor = stack.enter_context(opened_lock(self._directory.supervisor_lock))
            while not try_exclusive(lock):
                if is_held(supervisor):
                    return
                time.sleep(self._policy.client_tick)
            if not is_held(supervisor):
                self._spawn()

    def _spawn(self) -> None:
        order = json.dumps({"spec": self._spec.to_dict(), "policy": self._policy.to_dict()})
        module, nonce = "langchain_car_vllm.server.supervisor", secrets.token_hex(8)
        interpreter = _interpreter()
        try:
            process = subprocess.Popen(
                [interpreter, "-P", "-m", module, str(self._directory.path), nonce],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": _import_path()},
                start_new_session=True,
            )
        except OSError as error:
            raise ServerStartError(
                f"`{interpreter}` cannot run the supervisor: {error.strerror}",
                hint="set CAR_VLLM_PYTHON to a Python that has langchain-car-vllm installed",
            ) from error
        with process:
            said = _converse(process, order, self._policy.handshake)
        self._check(process.returncode, said)

    def _check(self, code: int, said: list[str]) -> None:
        if not said or not _is_report(said[-1].encode()):
            raise NoReportError(
                f"the supervisor ended with exit code {code} before it could report",
                exit_code=code,
                log_tail=tuple(said[-5:]),
            )
        verdict: dict[str, Any] = json.loads(said[-1])
        if "error" in verdict:
            raise decode_error(verdict["error"])


def _converse(process: subprocess.Popen[bytes], order: str, patience: float) -> list[str]:
    """Hand the order over and return what was said up to the report.

    Lines are exchanged, not ends of files: a child that another thread forks at this moment would
    keep our ends of the pipes open.

    Raises:
        ServerStartError: There was no report in time.
    """
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError):
        process.stdin.write(f"{order}\n".encode())
        process.stdin.close()
    said = b""
    deadline = time.monotonic() + patience
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while not (said.endswith(b"\n") and _is_report(said.splitlines()[-1])):
        ready = poll.poll(50)
        news = os.read(process.stdout.fileno(), 65536) if ready else b""
        said += news
        if not news and (ready or process.poll() is not None):
            break
        if time.monotonic() > deadline:
            process.kill()
            raise ServerStartError(f"the supervisor did not report within {patience:g} s")
    return said.decode(errors="replace").strip().splitlines()


def _is_report(line: bytes) -> bool:
    return line.startswith(b'{"ok": ')


def _interpreter() -> str:
    """Return the Python that runs the supervisor.

    Raises:
        ConfigurationError: The program is frozen or embedded, and CAR_VLLM_PYTHON names none.
    """
    if python := os.environ.get("CAR_VLLM_PYTHON"):
        return python
    if sys.executable and not getattr(sys, "frozen", False):
        return sys.executable
    raise ConfigurationError(
        "this program has no Python of its own to run the supervisor with",
        hint="set CAR_VLLM_PYTHON to a Python that has langchain-car-vllm installed",
    )


def _import_path() -> str:
    """Return where the package and what it needs lie, and nothing of the user's own path."""
    return os.pathsep.join(
        dict.fromkeys([str(_PACKAGE_PARENT), str(Path(psutil.__file__).parents[1])])
    )
