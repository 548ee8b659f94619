"""What the stages of a server's life share: its state, its patience and its spec."""

import dataclasses
import os
import time
from typing import Any

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.inbox import Inbox
from langchain_car_vllm.server.locks import open_lock
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import boot_id, host_name, identify
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import Reason, State, write_state


class Ending(Exception):  # noqa: N818
    """The life is over, for a reason that is nobody's fault."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Context:
    """The one holder of the state; whoever changes it writes it to the disk.

    Args:
        directory: Of the server key; its `supervisor.lock` is held by this process.
        spec: What to serve.
        policy: How long to wait for what.
        predecessor: The state that was found.

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
        predecessor: State | None,
    ) -> None:
        if predecessor and predecessor.phase != "stopped" and predecessor.host != host_name():
            raise StateDirectoryError(
                directory.path,
                f"machine `{predecessor.host}` uses it too",
                hint="set CAR_HOME to a directory of this machine's own",
            )
        self.directory = directory
        self.spec = spec
        self.policy = policy
        self.inbox = Inbox()
        self.lease = open_lock(directory.lease_lock)
        same_boot = predecessor is not None and predecessor.boot_id == boot_id()
        self.state = State(
            generation=predecessor.generation + 1 if predecessor else 1,
            phase="queued",
            host=host_name(),
            boot_id=boot_id(),
            name=spec.name,
            source=spec.source,
            supervisor=identify(os.getpid(), str(directory.path)),
            crashes=predecessor.crashes if predecessor and same_boot else (),
        )
        self.update()

    def update(self, **changes: Any) -> None:
        """Change the state and write it."""
        self.state = dataclasses.replace(self.state, **changes)
        write_state(self.directory.state, self.state)

    def show(self, detail: str, done: int | None = None, total: int | None = None) -> None:
        """Tell those who wait how far it is; written only when it is news."""
        state = self.state
        if (state.detail, state.done, state.total) != (detail, done, total):
            self.update(detail=detail, done=done, total=total)

    def pause(self, seconds: float) -> None:
        """Wait, or less when a signal comes.

        Raises:
            Ending: A user asked to stop.
        """
        self.inbox.wait(seconds)
        if self.inbox.stop_requested:
            raise Ending("user")


class Stall:
    """Tells silence from slowness.

    Args:
        limit: Seconds without a sign of life that are too many, 0 for none.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._seen: object = None
        self._alive_at = time.monotonic()

    def is_stalled(self, activity: object) -> bool:
        """Note what was seen of the activity; True when it has not changed for too long."""
        now = time.monotonic()
        if activity != self._seen:
            self._seen, self._alive_at = activity, now
        return bool(self._limit) and now - self._alive_at > self._limit
