"""Spawns a supervisor, unless somebody else just did."""

import errno
import json
import os
import secrets
import select
import signal
import threading
import time
from contextlib import ExitStack, suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_car_vllm.environment import CAR_VLLM_PYTHON, find_program, inherited_environment
from langchain_car_vllm.errors import CarVllmError, ServerStartError
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors, hint_of
from langchain_car_vllm.server.interpreter import (
    removal_error,
    supervisor_environment,
    supervisor_python,
)
from langchain_car_vllm.server.locks import is_held, opened_lock, try_exclusive
from langchain_car_vllm.server.order import Order, encode_order
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import decode_error

_PACKAGE = __name__.partition(".")[0]
_NEEDED = ("psutil", "packaging", "uv", "truststore", "python_socks")
"""What the supervisor and those it asks import from elsewhere, each maybe from its own folder."""
_STARTS = 2
"""A start that is waited for takes one handshake at most."""
_OTHER_PYTHON = "set CAR_VLLM_PYTHON to a Python that has langchain-car-vllm installed"


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
        try:
            self.start()
        except RuntimeError as error:
            refused = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            raise ServerStartError(
                f"the supervisor cannot be started: {error}", hint=hint_of(refused, "")
            ) from error

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
            patience = _STARTS * self._policy.handshake
            give_up_at = time.monotonic() + patience
            while not try_exclusive(lock):
                if is_held(supervisor):
                    return
                if time.monotonic() > give_up_at:
                    raise ServerStartError(
                        f"another program has been starting the server for {patience:g} s, and "
                        "seems to be suspended",
                        hint="resume that program, or end it",
                    )
                time.sleep(self._policy.client_tick)
            if not is_held(supervisor):
                self._spawn()

    def _spawn(self) -> None:
        order = encode_order(Order(self._spec, self._policy))
        module, tag = "langchain_car_vllm.server.supervisor", secrets.token_hex(8)
        interpreter = supervisor_python()
        try:
            process = _Process([interpreter, "-P", "-m", module, str(self._directory.path), tag])
        except OSError as error:
            raise ServerStartError(
                f"`{interpreter}` cannot run the supervisor: {error.strerror}",
                hint=hint_of(error, _OTHER_PYTHON),
            ) from error
        try:
            said = process.converse(order, self._policy.handshake)
        finally:
            code = process.end()
        self._check(code, said)

    def _check(self, code: int, said: list[str]) -> None:
        if not said or not _is_report(said[-1].encode()):
            if (gone := _missing_file()) is not None:
                raise removal_error(gone)
            raise NoReportError(
                f"the supervisor ended with exit code {code} before it could report",
                hint="unset CAR_VLLM_PYTHON, or name a Python that has langchain-car-vllm installed"
                if CAR_VLLM_PYTHON.text()
                else (
                    "call again; if it fails again, `car-vllm doctor` checks the Python that "
                    "runs it"
                ),
                exit_code=code,
                log_tail=tuple(said[-5:]),
            )
        verdict: dict[str, Any] = json.loads(said[-1])
        if "error" in verdict:
            raise decode_error(verdict["error"])


class _Process:
    """The supervisor's parent, for the time of the handshake.

    Another thread may fork at any moment, and its child would keep our ends of every pipe open.
    `subprocess` waits for the end of such a pipe, so this is `posix_spawn`, and lines are
    exchanged, not ends of files.

    Raises:
        OSError: The program cannot be run.
    """

    def __init__(self, command: list[str]) -> None:
        self._status: int | None = None
        program = find_program(command[0])
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
        reading, self._order = os.pipe()
        try:
            self._report, writing = os.pipe()
        except OSError:
            os.close(reading)
            os.close(self._order)
            raise
        try:
            self._pid = os.posix_spawn(
                program,
                command,
                supervisor_environment(inherited_environment(), package_path()),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reading, 0),
                    (os.POSIX_SPAWN_DUP2, writing, 1),
                    (os.POSIX_SPAWN_DUP2, writing, 2),
                ],
                setsid=True,
            )
        except OSError:
            os.close(self._order)
            os.close(self._report)
            raise
        finally:
            os.close(reading)
            os.close(writing)

    def converse(self, order: str, patience: float) -> list[str]:
        """Hand the order over and return what was said up to the report.

        Raises:
            ServerStartError: There was no report in time.
        """
        with suppress(BrokenPipeError), os.fdopen(self._order, "wb") as pipe:
            pipe.write(f"{order}\n".encode())
        said = b""
        deadline = time.monotonic() + patience
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        while not (said.endswith(b"\n") and _is_report(said.splitlines()[-1])):
            news = os.read(self._report, 65536) if poll.poll(50) else None
            said += news or b""
            if news == b"" or (news is None and self._has_ended()):
                break
            if time.monotonic() > deadline:
                if not self._has_ended():
                    os.kill(self._pid, signal.SIGKILL)
                raise ServerStartError(f"the supervisor did not report within {patience:g} s")
        return said.decode(errors="replace").strip().splitlines()

    def end(self) -> int:
        """Wait for its end, which follows its report at once, and return its exit code."""
        os.close(self._report)
        self._wait(0)
        return os.waitstatus_to_exitcode(self._status or 0)

    def _has_ended(self) -> bool:
        self._wait(os.WNOHANG)
        return self._status is not None

    def _wait(self, options: int) -> None:
        if self._status is not None:
            return
        try:
            pid, status = os.waitpid(self._pid, options)
        except ChildProcessError:
            # The program has the kernel or somebody else reap its children: the code is lost.
            pid, status = self._pid, 0
        self._status = status if pid else None


def _is_report(line: bytes) -> bool:
    return line.startswith(b'{"ok": ')


def package_path() -> str:
    """Return where the package and what it needs lie, and nothing of the user's own path."""
    origins = [Path(spec.origin) for spec in _needed_specs() if spec.origin]
    return os.pathsep.join(dict.fromkeys(str(origin.parents[1]) for origin in origins))


def _missing_file() -> str | None:
    """Return a file that this program imported and that a supervisor would look for in vain."""
    files = [s.origin for s in _needed_specs() if isinstance(s.loader, SourceFileLoader)]
    return next((file for file in files if file and not os.path.exists(file)), None)  # noqa: PTH110


def _needed_specs() -> list[ModuleSpec]:
    """Return where this package and what it needs were imported from, or would be."""
    found = [find_spec(name) for name in (_PACKAGE, *_NEEDED)]
    return [spec for spec in found if spec is not None]
