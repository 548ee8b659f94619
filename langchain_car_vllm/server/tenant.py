"""This process's side of one server key: its lease, its record and its view of the state."""

import os
import threading
from pathlib import Path

from langchain_car_vllm.server.clients import record_name, touch_record, write_record
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.locks import is_held, open_lock, release, try_shared
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.starter import Start
from langchain_car_vllm.server.state import State, read_state


class Tenant:
    """Shared by all threads and tasks of a process that use one server key.

    The lease is one shared `flock` for the whole process, held while any of its requests is under
    way; the kernel drops it however the process dies.

    Args:
        directory: Of the server key; made if missing.

    Raises:
        StateDirectoryError: The directory cannot be made or written to.
    """

    def __init__(self, directory: ServerDirectory) -> None:
        directory.create()
        self.directory = directory
        self._guard = threading.Lock()
        with explain_os_errors(directory.path):
            self._lease = open_lock(directory.lease_lock)
            self._supervisor = open_lock(directory.supervisor_lock)
            self._server = open_lock(directory.server_lock)
        self._is_abandoned = False
        self._holders = 0
        self._record: Path | None = None
        self._keep_alive: float | None = None
        self._stamp: tuple[int, int] | None = None
        self._state: State | None = None
        self._start: Start | None = None

    @property
    def holders(self) -> int:
        """How many requests of this process hold the lease."""
        return self._holders

    def acquire(self, keep_alive: float) -> bool:
        """Take the lease for one request; False while the server is stopping for idleness."""
        with self._guard, explain_os_errors(self.directory.path):
            if self._holders == 0 and not try_shared(self._lease):
                return False
            self._holders += 1
            if keep_alive != self._keep_alive:
                self._write_record(keep_alive)
            return True

    def release(self, keep_alive: float) -> None:
        """Give one request's lease back and tell the supervisor that it ended."""
        if self._is_abandoned:
            return
        with self._guard:
            try:
                if keep_alive != self._keep_alive:
                    self._write_record(keep_alive)
                elif self._record is not None:
                    touch_record(self._record, keep_alive)
            finally:
                self._holders -= 1
                if self._holders == 0:
                    release(self._lease)

    def state(self) -> State | None:
        """Return the state, parsed again only when the file was replaced."""
        try:
            found = os.stat(self.directory.state)  # noqa: PTH116
        except FileNotFoundError:
            return None
        stamp = found.st_ino, found.st_mtime_ns
        if stamp != self._stamp:
            with explain_os_errors(self.directory.state):
                self._state = read_state(self.directory.state)
            self._stamp = stamp
        return self._state

    def is_server_alive(self) -> bool:
        """Ask the kernel whether the server process lives."""
        return is_held(self._server)

    def is_supervisor_alive(self) -> bool:
        """Ask the kernel whether the supervisor lives."""
        return is_held(self._supervisor)

    def begin_start(self, spec: ServerSpec, policy: Policy) -> Start:
        """Start a supervisor, or join the attempt of this process that is under way."""
        with self._guard:
            if self._start is None or not self._start.is_alive():
                self._start = Start(self.directory, spec, policy)
            return self._start

    def abandon(self) -> None:
        """Close everything without unlocking: after `fork` the parent still holds its lease."""
        self._is_abandoned = True
        for descriptor in (self._lease, self._supervisor, self._server):
            os.close(descriptor)

    def _write_record(self, keep_alive: float) -> None:
        if self._record is None:
            self._record = self.directory.clients / record_name()
        write_record(self._record, keep_alive)
        self._keep_alive = keep_alive


_tenants: dict[str, Tenant] = {}
_tenants_guard = threading.Lock()


def tenant_of(directory: ServerDirectory) -> Tenant:
    """Return this process's tenant of a server key."""
    with _tenants_guard:
        name = str(directory.path)
        if name not in _tenants or not directory.path.is_dir():
            _tenants[name] = Tenant(directory)
        return _tenants[name]


def tenants() -> list[Tenant]:
    """Return all server keys that this process has used."""
    with _tenants_guard:
        return list(_tenants.values())


def _forget_after_fork() -> None:
    global _tenants_guard  # noqa: PLW0603
    _tenants_guard = threading.Lock()
    for tenant in _tenants.values():
        tenant.abandon()
    _tenants.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
