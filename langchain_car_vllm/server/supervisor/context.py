"""What the stages of a server's life share: its state, its patience and its spec."""

import dataclasses
import os
import time
from typing import Any, NamedTuple

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server.client_record import has_live_client, is_promised
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import (
    close_lock,
    is_same_file,
    open_lock,
    release,
    try_exclusive,
)
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import Identity, boot_id, host_name, machine_id, namespace
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import (
    STARTING,
    Phase,
    Reason,
    State,
    is_used_elsewhere,
    state_stamp,
    write_state,
)
from langchain_car_vllm.server.supervisor.signals import SignalInbox
from langchain_car_vllm.version import VERSION

_WANTED_LOOK = 0.5
NOT_QUEUED: dict[str, Any] = {
    "needed": 0,
    "queued_at": None,
    "victims": (),
    "shrinks": {},
    "blocked_by": {},
    "shortfall": 0,
}
"""The fields of a state that speak of its wait for memory, once there is none."""


class SupervisorLock(NamedTuple):
    """What makes this process the supervisor.

    Attributes:
        lock: Descriptor of `supervisor.lock`, held exclusively.
        tag: Random text on this process's command line.
    """

    lock: int
    tag: str


class StageEnded(Exception):  # noqa: N818
    """The life is over, for a reason that is nobody's fault."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class SupervisorContext:
    """The one holder of the state; a change is written at once, but for the times of crashes.

    Attributes:
        lease: Descriptor of `lease.lock`.

    Raises:
        StateDirectoryError: The predecessor lives on another machine.
    """

    def __init__(
        self,
        directory: ServerDirectory,
        spec: ServerSpec,
        policy: Policy,
        *,
        predecessor: State | None,
        held: SupervisorLock,
    ) -> None:
        if predecessor and predecessor.phase != "stopped":
            _check_machine(predecessor, directory)
        self._held = held
        self._life = open_lock(directory.author_lock(held.tag))
        try_exclusive(self._life)
        self.directory = directory
        self.spec = spec
        self.policy = policy
        self.inbox = SignalInbox()
        self.lease = open_lock(directory.lease_lock)
        self._written: tuple[int, int] | None = None
        self._wanted_at = self._look_at = time.monotonic()
        same_boot = predecessor is not None and predecessor.boot_id == boot_id()
        self.state = State(
            generation=predecessor.generation + 1 if predecessor else 1,
            phase="queued",
            host=host_name(),
            machine=machine_id(),
            boot_id=boot_id(),
            package=VERSION,
            network=namespace("net"),
            processes=namespace("pid"),
            served_name=spec.served_name,
            source=spec.source,
            kind=spec.kind,
            keep_alive=spec.keep_alive,
            supervisor=Identity(os.getpid(), held.tag),
            crashes=predecessor.crashes if predecessor and same_boot else (),
            previous=predecessor.reason if predecessor else None,
        )
        self.update()

    def update(self, **changes: Any) -> None:
        """Change the state and write it, unless the directory is no longer ours."""
        self.state = dataclasses.replace(self.state, **changes)
        self._written = None  # until it is: what fails now is written by the next pause
        if is_same_file(self._held.lock, self.directory.supervisor_lock):
            self._written = write_state(self.directory.state, self.state)

    def note_crashes(self, crashes: tuple[float, ...]) -> None:
        """Remember when it crashed; written with the end of the server, not before."""
        self.state = dataclasses.replace(self.state, crashes=crashes)

    def show(
        self,
        detail: str,
        done: int | None = None,
        total: int | None = None,
        *,
        phase: Phase | None = None,
    ) -> None:
        """Tell those who wait how far it is; written only when it is news.

        Args:
            detail: One line.
            done: How much of it is done.
            total: How much there is in all.
            phase: The stage that this is, None for the one that it was.
        """
        state, phase = self.state, phase or self.state.phase
        if (state.phase, state.detail, state.done, state.total) != (phase, detail, done, total):
            self.update(phase=phase, detail=detail, done=done, total=total)

    def pause(self, seconds: float) -> None:
        """Wait, or less when a signal comes, and put back a state that somebody removed or changed.

        Raises:
            StageEnded: A user asked to stop, or files were removed by which others find this.
        """
        self.rest(seconds)
        self._check_locks()
        self._check_wanted()
        if state_stamp(self.directory.state) != self._written:
            self.update()

    def rest(self, seconds: float) -> None:
        """Wait, or less when a signal comes.

        Raises:
            StageEnded: A user asked to stop.
        """
        self.inbox.wait(seconds)
        if self.inbox.stop_requested:
            raise StageEnded("user")

    def _check_wanted(self) -> None:
        """End a start that lost its last waiter, unless a program lives that may come back.

        Others make room for one that waits for memory, so a program alone does not keep that.
        Whoever gave up for his own `startup_timeout` was promised that it goes on.
        """
        now = time.monotonic()
        if self.state.phase not in STARTING or now < self._look_at:
            return
        self._look_at = now + _WANTED_LOOK
        clients = self.directory.clients
        is_unused = try_exclusive(self.lease)
        if is_unused:
            release(self.lease)
        goes_on = is_promised(clients, self.state.generation)
        may_come_back = self.state.queued_at is None and has_live_client(clients)
        if not is_unused or goes_on or may_come_back:
            self._wanted_at = now
        elif now - self._wanted_at > self.policy.abandoned_patience:
            raise StageEnded("idle")

    def _check_locks(self) -> None:
        """End where others would open new files in place of the locks that are held.

        The lock that tells of this author can be made anew: nobody but this process takes it.
        """
        directory = self.directory
        held = ((self._held.lock, directory.supervisor_lock), (self.lease, directory.lease_lock))
        if not all(is_same_file(descriptor, path) for descriptor, path in held):
            raise StageEnded("lost")
        if not is_same_file(self._life, path := directory.author_lock(self._held.tag)):
            close_lock(self._life)
            self._life = open_lock(path)
            try_exclusive(self._life)


def _check_machine(predecessor: State, directory: ServerDirectory) -> None:
    """Refuse a directory that a supervisor of another machine may be using."""
    if is_used_elsewhere(predecessor, directory.path):
        raise StateDirectoryError(
            directory.path,
            f"machine `{predecessor.host}` uses it too",
            hint="set CAR_HOME to a directory that only this machine uses",
        )
