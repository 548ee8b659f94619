"""Room in memory: set aside, taken from others in turn, waited for."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.locks import is_held, opened_lock, release, try_exclusive
from langchain_car_vllm.server.memory import Memory, budget_bytes
from langchain_car_vllm.server.plan import insufficient_memory
from langchain_car_vllm.server.process import Identity
from langchain_car_vllm.server.recovery import clean_up
from langchain_car_vllm.server.spec import PROTOCOL
from langchain_car_vllm.server.state import State, ask_to_make_room, read_any_state
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.eviction import Decision, Neighbour, decide

_GB = 1e9
_ASK_AGAIN = 1.0


def reserve_memory(context: SupervisorContext, memory: Memory) -> None:
    """Set memory aside, sending others away in turn and waiting for busy ones.

    Raises:
        InsufficientMemoryError: It can never fit.
        StageEnded: Nobody waits for this server any more.
    """
    needed, budget = max(0, memory.needed), budget_bytes()
    if needed > budget:
        raise insufficient_memory(context.spec, memory, budget)
    _end_lost_servers(context)
    _retire_other_protocols(context)
    queue = _Queue(context, needed, budget)
    while not queue.try_reserve():
        _check_somebody_waits(context)
        context.pause(context.policy.memory_tick)


def evict_idle_servers(context: SupervisorContext) -> None:
    """Send all idle servers away, since memory ran out although the budget says otherwise."""
    idle = [(d, s) for d, s in _others(context) if s.phase == "ready" and _is_idle(d)]
    for directory, state in idle:
        ask_to_make_room(directory.state, state)
    give_up_at = time.monotonic() + context.policy.stop_patience
    while time.monotonic() < give_up_at and any(_is_supervised(d) for d, _ in idle):
        context.pause(context.policy.start_tick)


class _Queue:
    """One start's wait for memory.

    `memory.lock` is held for the look and the decision alone; whoever makes room does so outside.
    """

    def __init__(self, context: SupervisorContext, needed: int, budget: int) -> None:
        self._context = context
        self._needed = needed
        self._budget = budget
        self._place = time.monotonic(), context.directory.key
        self._asked_since: float | None = None
        self._asked_at: dict[str, float] = {}

    def try_reserve(self) -> bool:
        """Take the memory where it is this start's turn, else ask others to make room."""
        context = self._context
        with _memory_lock(context):
            others = _others(context)
            decision = decide(
                self._needed,
                self._place,
                self._budget,
                [_neighbour(directory, state) for directory, state in others],
                is_impatient=self._is_impatient(),
            )
            if decision.is_granted:
                context.update(
                    reservation=self._needed,
                    needed=0,
                    queued_at=None,
                    victims=(),
                    blocked_by={},
                    shortfall=0,
                    detail="",
                )
                return True
            self._publish(decision, [state for _, state in others], others)
        self._ask([entry for entry in others if entry[0].key in decision.victims])
        return False

    def _is_impatient(self) -> bool:
        since = self._asked_since
        return since is not None and time.monotonic() - since > self._context.policy.drain_patience

    def _publish(
        self,
        decision: Decision,
        states: Sequence[State],
        others: Sequence[tuple[ServerDirectory, State]],
    ) -> None:
        """Say what is waited for, so that later starts respect it and victims find it."""
        context = self._context
        blocked_by = {d.key: s.reservation for d, s in others if s.reservation}
        told = context.state.victims, context.state.blocked_by
        if context.state.queued_at is None or told != (decision.victims, blocked_by):
            names = ", ".join(f"`{state.served_name}`" for state in states if state.reservation)
            needed, free = self._needed / _GB, max(0, decision.free) / _GB
            context.update(
                phase="queued",
                needed=self._needed,
                queued_at=self._place[0],
                victims=decision.victims,
                blocked_by=blocked_by,
                shortfall=self._needed - decision.free,
                detail=f"needs {needed:.1f} GB, {free:.1f} GB are free; waits for {names}",
            )

    def _ask(self, victims: Sequence[tuple[ServerDirectory, State]]) -> None:
        now = time.monotonic()
        if not victims:
            self._asked_since = None
        elif self._asked_since is None:
            self._asked_since = now
        for directory, state in victims:
            if now - self._asked_at.get(directory.key, -_ASK_AGAIN) >= _ASK_AGAIN:
                self._asked_at[directory.key] = now
                ask_to_make_room(directory.state, state)
                state.supervisor.wake()


@contextmanager
def _memory_lock(context: SupervisorContext) -> Iterator[None]:
    """Hold `memory.lock`; a holder that somebody suspended is woken."""
    path = context.directory.path.parent / "memory.lock"
    with opened_lock(path) as lock:
        asked_at = time.monotonic()
        while not try_exclusive(lock):
            context.pause(context.policy.client_tick)
            if time.monotonic() - asked_at > context.policy.stop_patience:
                asked_at = time.monotonic()
                _wake_holder(path)
        own = context.state.supervisor
        with suppress(OSError):  # on a full disk it stays a lock
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{own.pid} {own.tag}".encode(), 0)
        yield


def _wake_holder(path: Path) -> None:
    with suppress(OSError, ValueError):
        pid, tag = path.read_text(encoding="ascii").split()
        Identity(int(pid), tag).wake()


def _others(context: SupervisorContext) -> list[tuple[ServerDirectory, State]]:
    """Return the live servers and starts that have memory set aside or wait for it."""
    found = []
    for directory in server_directories():
        state = read_any_state(directory.state)
        if state is None or directory.key == context.directory.key:
            continue
        if (state.reservation or state.queued_at is not None) and _is_supervised(directory):
            found.append((directory, state))
    return found


def _neighbour(directory: ServerDirectory, state: State) -> Neighbour:
    waits = state.queued_at is not None and state.phase == "queued" and not _is_suspended(state)
    is_ready = state.phase == "ready"
    is_idle = is_ready and _is_idle(directory)
    for_ever, last_use = _last_use(directory.clients)
    return Neighbour(
        key=directory.key,
        reservation=state.reservation,
        is_evictable=is_ready,
        is_leaving=state.phase == "stopping",
        is_idle=is_idle,
        order=(for_ever, last_use if is_idle else state.ready_at or 0.0),
        place=(state.queued_at, directory.key) if waits and state.queued_at is not None else None,
        needed=state.needed if waits else 0,
        victims=state.victims if waits else (),
    )


def _is_suspended(state: State) -> bool:
    process = state.supervisor.find()
    with suppress(psutil.Error):
        return process is not None and process.status() == psutil.STATUS_STOPPED
    return False


def _end_lost_servers(context: SupervisorContext) -> None:
    """Get back the memory of servers whose supervisors were killed."""

    def is_lost(directory: ServerDirectory, state: State) -> bool:
        return state.server is not None and not _is_supervised(directory)

    for directory, _ in _states(context, is_lost):
        with suppress(ServerError):
            clean_up(directory, context.policy, "lost")


def _retire_other_protocols(context: SupervisorContext) -> None:
    """Ask the idle server of a release with another protocol to go; it has a key of its own."""

    def is_old(_: ServerDirectory, state: State) -> bool:
        is_same = state.served_name == context.spec.served_name
        return is_same and state.protocol < PROTOCOL and state.phase == "ready"

    for directory, state in _states(context, is_old):
        ask_to_make_room(directory.state, state)


def _states(
    context: SupervisorContext, is_wanted: Callable[[ServerDirectory, State], bool]
) -> Iterator[tuple[ServerDirectory, State]]:
    for directory in server_directories():
        with suppress(OSError):
            state = read_any_state(directory.state)
            if state is None or directory.key == context.directory.key:
                continue
            if is_wanted(directory, state):
                yield directory, state


def _is_supervised(directory: ServerDirectory) -> bool:
    with suppress(OSError), opened_lock(directory.supervisor_lock) as descriptor:
        return is_held(descriptor)
    return False


def _check_somebody_waits(context: SupervisorContext) -> None:
    if try_exclusive(context.lease):
        raise StageEnded("idle")


def _is_idle(directory: ServerDirectory) -> bool:
    with suppress(OSError), opened_lock(directory.lease_lock) as descriptor:
        if try_exclusive(descriptor):
            release(descriptor)
            return True
    return False


def _last_use(clients: Path) -> tuple[bool, float]:
    """Return whether somebody wants it kept forever, and when it was last used."""
    for_ever, latest = False, 0.0
    for record in clients.glob("[!.]*"):
        with suppress(OSError, ValueError):
            latest = max(latest, record.stat().st_mtime)
            for_ever = for_ever or record.read_text(encoding="ascii").startswith("-")
    return for_ever, latest
