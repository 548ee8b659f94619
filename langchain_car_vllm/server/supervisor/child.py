"""The supervisor's child: it cannot outlive its parent, and once ended it is gone."""

import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from langchain_car_vllm.environment import (
    CAR_VLLM_LAUNCH_KEY,
    CAR_VLLM_LAUNCH_PARENT,
    CAR_VLLM_LAUNCH_PIPE,
)
from langchain_car_vllm.errors import ServerStartError
from langchain_car_vllm.runtime import interpreter_of
from langchain_car_vllm.runtime.mounts import ELSEWHERE, is_noexec
from langchain_car_vllm.server.directory import ServerDirectory, hint_of
from langchain_car_vllm.server.locks import (
    acquire_exclusive,
    close_lock,
    file_identity,
    hand_over,
    open_lock,
)
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import (
    Identity,
    group_members,
    has_ended,
    kill_group,
    reap_group,
    wait_until_group_gone,
)
from langchain_car_vllm.support.file_presence import entries_of, is_present
from langchain_car_vllm.support.stall import cpu_seconds

_HERE = Path(__file__).parent
# Read at import: the virtual environment may be gone when they are needed.
_LAUNCHER = {
    path.relative_to(_HERE): path.read_bytes()
    for path in (_HERE / "launch.py", *entries_of(_HERE / "mends", "*.py"))
}
_LOCK_PATIENCE = 5.0
_KEPT_LOGS = 3
_PIECE = 1_000_000
_SAVING_LOOK = 0.5
# The virtual environment may be gone when it is needed.
_PYTHON = os.path.realpath(sys.executable)
_SAVING = b"Saving prefix cache"
# What `launch.py` leaves in the group to end it when the supervisor is gone.
_WATCHER = "read -r _; kill -9 0"


def install_launcher(directory: ServerDirectory) -> None:
    """Put `launch.py` and its mends where they outlive the virtual environment they came from.

    A file that is there already is left as it is: its bytecode, of whatever Python, stays good.
    """
    for name, content in _LAUNCHER.items():
        path = directory.launcher.parent / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not is_present(path) or path.read_bytes() != content:
            path.write_bytes(content)
            for bytecode in entries_of(path.parent / "__pycache__", f"{path.stem}.*"):
                bytecode.unlink(missing_ok=True)


def _unrunnable(binary: Path, program: str, error: OSError) -> ServerStartError:
    """Return the error for a program that the system does not run."""
    cure = "repair the install with `car-vllm install --upgrade`"
    if is_noexec(Path(program)):
        cure = f"the disk of `{program}` does not let programs run (noexec): {ELSEWHERE}"
    return ServerStartError(
        f"`{binary}` cannot be run: `{program}`: {error.strerror}", hint=hint_of(error, cure)
    )


class Child:
    """A process group led by `vllm-mlx`, writing to a log of its own.

    The process holds `server.lock` while it lives, so that clients can ask the kernel. It must be
    spawned from the main thread: Linux kills it when the thread that spawned it ends.

    Args:
        directory: Of the server key.
        binary: The `vllm-mlx` to run.
        arguments: Its arguments, without the key.
        environment: Its environment, complete.
        log: Where its output goes; logs of earlier starts are kept beside it.
        api_key: Handed over in the environment, never on the command line of a Python script.

    Attributes:
        identity: Who it is.
        log: See above.
        shows_key: Whether the key stands on its command line, where other users can read it.
    """

    def __init__(
        self,
        directory: ServerDirectory,
        binary: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path,
        api_key: str | None = None,
    ) -> None:
        self.log = log
        self._lock_path = directory.server_lock
        interpreter = interpreter_of(binary)
        if interpreter is None and not os.access(binary, os.X_OK):
            raise ServerStartError(
                f"`{binary}` is not executable",
                hint=f"run `chmod +x {shlex.quote(str(binary))}`, or unset CAR_VLLM_MLX_BIN",
            )
        self._is_python = interpreter is not None
        tag = secrets.token_hex(8)
        visible_tag = tag if interpreter or api_key is None else api_key
        self.shows_key = interpreter is None and api_key is not None
        lock = open_lock(directory.server_lock)
        if not acquire_exclusive(lock, _LOCK_PATIENCE):
            close_lock(lock)
            raise ServerStartError(
                f"another process holds `{directory.server_lock}`",
                hint="a server without a supervisor may still be running: `car-vllm stop` ends it",
            )
        self._lock_file = file_identity(lock)
        reading, self._pipe = os.pipe()
        variables = {
            **environment,
            CAR_VLLM_LAUNCH_PIPE.name: str(reading),
            CAR_VLLM_LAUNCH_PARENT.name: str(os.getpid()),
        }
        if api_key is not None:
            variables[CAR_VLLM_LAUNCH_KEY.name] = api_key
        mode = "run" if interpreter else "exec"
        program = str(interpreter or _PYTHON)
        _rotate(log)
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [program, str(directory.launcher), tag, mode, str(binary), *arguments],
                    env=variables,
                    cwd=directory.path,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(reading, lock),
                    start_new_session=True,
                    umask=0o077,
                )
        except BaseException as error:
            os.close(self._pipe)
            # What names another file is about the folder, the log in it, say.
            if isinstance(error, OSError) and error.filename in (None, program):
                raise _unrunnable(binary, program, error) from error
            raise
        finally:
            os.close(reading)
            hand_over(lock)
        self.identity = Identity(self._process.pid, visible_tag)

    @property
    def pid(self) -> int:
        """Process id and process group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs.

        Whoever it left behind is ended before it is reaped: afterwards its number may be another's.
        """
        if self._process.returncode is None and has_ended(self.pid):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.poll()
        return self._process.returncode

    def is_findable(self) -> bool:
        """Tell whether clients still find the lock that the process holds."""
        return file_identity(self._lock_path) == self._lock_file

    def activity(self) -> tuple[int, float]:
        """Return what grows while it does something: its log's size and its CPU seconds."""
        return log_size(self.log), round(cpu_seconds(self.pid), 2)

    def trim_log(self, limit: int) -> None:
        """Keep the log below `limit` bytes: its last half stays, the server writes on behind it."""
        if (size := log_size(self.log)) <= limit:
            return
        begin, kept = size - limit // 2, 0
        with suppress(FileNotFoundError), self.log.open("r+b") as file:
            while kept < limit and (piece := _read_at(file, begin + kept)):
                file.seek(kept)
                kept += file.write(piece)
            file.truncate(kept)

    def interrupt(self, policy: Policy) -> bool:
        """End it as Ctrl-C does, so that it saves its prefix cache, then less gently.

        Where it is not Python that was spawned, all of the group hear it, as they would in a
        terminal: the server may be the child of a shell script. A script that ends first is not a
        reason to cut its server off. Else the processes that the server works with are left to it.

        Returns:
            Whether nobody of its group is left.
        """
        began = log_size(self.log)
        for _ in range(2):
            members = self._members()
            if self._is_python:
                members = [member for member in members if member.pid == self.pid]
            if not members:
                break
            # A suspended process hears nothing until it goes on.
            for number in (signal.SIGINT, signal.SIGCONT):
                for process in members:
                    with suppress(psutil.Error):
                        process.send_signal(number)
            self._wait_while_saving(policy, began)
        return self.kill(policy)

    def kill(self, policy: Policy) -> bool:
        """End its whole group at once.

        Returns:
            Whether nobody of it is left.
        """
        if self._process.returncode is None:
            kill_group(self.pid, policy.kill_grace)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(policy.kill_grace)
        gone = wait_until_group_gone(self.pid, policy.kill_grace)
        reap_group(self.pid)
        os.close(self._pipe)
        return gone

    def _wait_while_saving(self, policy: Policy, began: int) -> None:
        """Wait until it ends; a server that is saving gets longer while it makes progress.

        Args:
            policy: How long.
            began: Size of the log when the stop began; what stands before says nothing of it.
        """
        seen = self.activity()
        now = looked_at = time.monotonic()
        deadline, latest = now + policy.stop_grace, now + policy.save_limit
        # The look goes over all processes of the machine.
        interval = min(_SAVING_LOOK, policy.stop_grace / 4, policy.save_stall / 4)
        while (now := time.monotonic()) < min(deadline, latest):
            if has_ended(self.pid) and not self._members():
                return
            time.sleep(policy.start_tick)
            if now - looked_at < interval:
                continue
            looked_at = now
            if (activity := self.activity()) != seen and self._is_saving(began):
                seen, deadline = activity, now + policy.save_stall

    def _members(self) -> list[psutil.Process]:
        """Return the live processes of its group, without the watcher that only waits for us."""
        if self._process.returncode is not None:
            return []
        found = []
        for process in group_members(self.pid):
            with suppress(psutil.Error):
                if process.pid == self.pid or not _is_watcher(process.cmdline()):
                    found.append(process)
        return found

    def _is_saving(self, began: int) -> bool:
        with suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(began)
            return _SAVING in file.read()
        return False


def log_size(log: Path) -> int:
    """Return a log's size in bytes, 0 once somebody removed it."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _is_watcher(command: list[str]) -> bool:
    return command[1:3] == ["-c", _WATCHER]


def _read_at(file: BinaryIO, position: int) -> bytes:
    file.seek(position)
    return file.read(_PIECE)


def _rotate(log: Path) -> None:
    for number in range(_KEPT_LOGS - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if is_present(older):
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    if is_present(log):
        log.replace(log.with_name(f"{log.name}.1"))
