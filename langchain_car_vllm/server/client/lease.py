"""What the rest of the package calls: a ready server, held by a lease."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.environment import CAR_HOME, HOME
from langchain_car_vllm.errors import CarVllmError, ServerCrashedError
from langchain_car_vllm.models.identity import led_to
from langchain_car_vllm.progress import OnProgress
from langchain_car_vllm.runtime.locate import overriding_binary
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.client.keeper import Keeper
from langchain_car_vllm.server.client.process_lease import ProcessLease, process_lease_of
from langchain_car_vllm.server.client.wait import Waiting
from langchain_car_vllm.server.directory import ServerDirectory, server_directory
from langchain_car_vllm.server.policy import Policy, policy_from_environment
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.support.closed_loops import ended_with_loop
from langchain_car_vllm.support.threads import run_step, submit_step


@dataclass(frozen=True, slots=True)
class Lease:
    """A ready server that does not stop for idleness while this is held.

    Attributes:
        endpoint: How to talk to it.
        gate: Tells when a request may be sent.
    """

    endpoint: Endpoint
    gate: Admission
    _waiting: Waiting

    def explain(self) -> CarVllmError | None:
        """Tell what became of the server after its connection broke.

        Returns:
            `ServerStoppedError`, `ServerCrashedError`, or None where the server is well. It may
            take some hundred milliseconds.
        """
        began = time.monotonic()
        while not (found := self._look(began)):
            time.sleep(self._waiting.policy.client_tick)
        return found[0]

    async def aexplain(self) -> CarVllmError | None:
        """Do the same without blocking the event loop."""
        began = time.monotonic()
        while not (found := await run_step(self._look, began)):  # noqa: ASYNC110
            await asyncio.sleep(self._waiting.policy.client_tick)
        return found[0]

    def was_alone(self, crash: ServerCrashedError) -> bool:
        """Tell whether this request was the only one under way when the server crashed."""
        return self._waiting.was_alone(crash)

    def take_blame(self, crashes: Sequence[ServerCrashedError]) -> None:
        """Have crashes that this very request caused not count against its neighbours."""
        folder = self._waiting.directory.blame
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            for crash in crashes:
                if crash.crashed_at is not None:
                    (folder / repr(crash.crashed_at)).touch(mode=0o600)

    def _look(self, began: float) -> tuple[CarVllmError | None] | None:
        return self._waiting.explain_step(self.endpoint, time.monotonic() - began)


@contextmanager
def lease(
    spec: ServerSpec,
    *,
    startup_timeout: float | None = None,
    on_progress: OnProgress | None = None,
    policy: Policy | None = None,
    keeper: Keeper | None = None,
) -> Iterator[Lease]:
    """Hold a ready server, starting it if nobody has.

    Args:
        spec: What to serve.
        startup_timeout: Seconds to wait at most, None for no limit.
        on_progress: Called in this thread with every change while waiting.
        policy: The timings, by default those of the environment.
        keeper: Keeps the server in memory beyond this, as long as it is not closed.

    Raises:
        CarVllmError: The server cannot be had; the type tells why.
        ServerStartingError: `startup_timeout` ran out; the start goes on.
    """
    waiting = _wait(spec, policy, startup_timeout, on_progress, keeper)
    try:
        try:
            while (endpoint := waiting.step()) is None:
                time.sleep(waiting.tick)
        except KeyboardInterrupt:
            waiting.interrupt()
            raise
        gate = _admission(waiting, endpoint, on_progress)
        try:
            yield Lease(endpoint, gate, waiting)
        finally:
            gate.close()
    finally:
        waiting.hold.give_up()


@asynccontextmanager
async def alease(
    spec: ServerSpec,
    *,
    startup_timeout: float | None = None,
    on_progress: OnProgress | None = None,
    policy: Policy | None = None,
    keeper: Keeper | None = None,
) -> AsyncIterator[Lease]:
    """Do what `lease` does without blocking the event loop; cancelling it cancels no start."""
    waiting = _wait(spec, policy, startup_timeout, on_progress, keeper)
    try:
        with ended_with_loop(waiting.hold.give_up):
            while (endpoint := await run_step(waiting.step)) is None:  # noqa: ASYNC110
                await asyncio.sleep(waiting.tick)
            gate = _admission(waiting, endpoint, on_progress)
            try:
                with ended_with_loop(gate.close):
                    yield Lease(endpoint, gate, waiting)
            finally:
                if gate.holds_place:
                    # A stream that was closed early has left a ticket, torn up off the loop.
                    submit_step(gate.close)
                else:
                    gate.close()
    finally:
        waiting.hold.give_up()


def _admission(waiting: Waiting, endpoint: Endpoint, on_progress: OnProgress | None) -> Admission:
    policy = waiting.policy
    return Admission(
        waiting.directory,
        endpoint,
        on_progress,
        policy.client_tick,
        policy.suspended_patience,
        hold=waiting.hold,
        own_memory=policy.own_memory,
    )


def ensure_server(spec: ServerSpec) -> Endpoint:
    """Make sure that the server is ready and return how to talk to it.

    Raises:
        CarVllmError: The server cannot be had; the type tells why.
    """
    with lease(spec) as held:
        return held.endpoint


def directory_of(spec: ServerSpec) -> ServerDirectory:
    """Return where the run state of a spec lies."""
    binary = overriding_binary()
    used = None if binary is None else str(binary)
    folders = tuple(map(led_to, (spec.source, spec.adapter, spec.draft)))
    return _directory(spec, used, folders, CAR_HOME.text(), HOME.text())


@lru_cache(maxsize=256)
def _directory(spec: ServerSpec, used: str | None, *_: object) -> ServerDirectory:
    """Remember what follows from a spec and what it leads to: every request asks for it."""
    return server_directory(spec.key(used))


def _wait(
    spec: ServerSpec,
    policy: Policy | None,
    startup_timeout: float | None,
    on_progress: OnProgress | None,
    keeper: Keeper | None,
) -> Waiting:
    @cache
    def directory() -> ServerDirectory:
        return directory_of(spec)

    def find_process_lease() -> ProcessLease:
        return process_lease_of(directory())

    return Waiting(
        find_process_lease,
        spec,
        policy or policy_from_environment(),
        startup_timeout,
        on_progress,
        keeper=keeper,
    )
