"""Room in memory: set aside, taken from others in turn, waited for."""

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import starmap
from pathlib import Path

from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.runtime.metal import likely_working_set
from langchain_car_vllm.server.client_record import keepers, read_uses, requesters
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.locks import opened_lock, release, try_exclusive
from langchain_car_vllm.server.memory import Memory, budget_bytes
from langchain_car_vllm.server.plan import insufficient_memory
from langchain_car_vllm.server.process import Identity, is_suspended
from langchain_car_vllm.server.recovery import clean_up
from langchain_car_vllm.server.spec import PROTOCOL
from langchain_car_vllm.server.state import State, read_any_state
from langchain_car_vllm.server.supervision import (
    ask_to_make_room,
    ask_to_shrink,
    can_shrink,
    is_supervised,
    supervised_servers,
)
from langchain_car_vllm.server.supervisor.context import NOT_QUEUED, SupervisorContext
from langchain_car_vllm.server.supervisor.memory_decision import (
    Decision,
    Neighbour,
    company_to_give,
    decide,
)
from langchain_car_vllm.server.tickets import Ticket, read_tickets
from langchain_car_vllm.server.wiring import wired_bytes, wiring_mode

Servers = Sequence[tuple[ServerDirectory, State]]
_GB = 1e9
_ASK_AGAIN = 1.0


def reserve_memory(context: SupervisorContext, memory: Memory) -> Memory:
    """Set memory aside: what is left, at least what a start needs.

    Others go on with less where that is enough, are sent away in turn, or are waited for.

    Returns:
        What was set aside.

    Raises:
        InsufficientMemoryError: It can never fit.
        StageEnded: Nobody waits for this server any more.
    """
    _end_lost_servers(context)
    _retire_other_protocols(context)
    queue = _Queue(context, memory)
    while (granted := queue.try_reserve()) is None:
        context.pause(context.policy.memory_tick)
    return granted


def grow_reservation(
    context: SupervisorContext, memory: Memory, full: Memory, tickets: Sequence[Ticket]
) -> Memory:
    """Take what is free for a running server that has less than if it were alone.

    Company is for requests beside another one: a server without such leaves it to others that have
    some, and is asked for what it has where requests wait. What starts wait for is theirs.

    Args:
        context: Of the server.
        memory: What it has.
        full: What it would have if it were alone.
        tickets: Of its requests.

    Returns:
        What it has now.
    """
    with opened_lock(_lock_file(context)) as lock:
        if not try_exclusive(lock):
            return memory
        others, shrinks = _others(context), {}
        is_start_waiting = any(state.queued_at is not None for _, state in others)
        if not is_start_waiting and (
            _is_company(context.directory, tickets) or not any(starmap(_has_company, others))
        ):
            free = budget_bytes() - sum(state.reservation for _, state in others)
            memory = max(memory, full.within(free), key=lambda each: each.needed)
            spare = _unused_room(others) if any(t.stage == "waiting" for t in tickets) else {}
            given = company_to_give(full.needed - memory.needed, spare)
            shrinks = {d.key: s.reservation - given[d.key] for d, s in others if d.key in given}
        if (memory.needed, shrinks) != (context.state.reservation, context.state.shrinks):
            context.update(reservation=memory.needed, shrinks=shrinks)
    for directory, state in others:
        if directory.key in shrinks:
            ask_to_shrink(directory.state, state)
            state.supervisor.wake()
    return memory


def _unused_room(others: Servers) -> dict[str, int]:
    """Return what ready servers have set aside for company and can give away now, by key."""
    return {
        directory.key: state.reservation - state.least
        for directory, state in others
        if state.phase == "ready"
        and 0 < state.least < state.reservation
        and _is_room_unused(directory, state)
    }


def _is_room_unused(directory: ServerDirectory, state: State) -> bool:
    """Tell whether there is no company, and who is alone fits into what a server always keeps."""
    with suppress(OSError):
        tickets = read_tickets(directory.turns, state.generation)
        most = max((ticket.tokens for ticket in tickets), default=0)
        fits = most <= (state.serving.max_input_tokens or 0)
        return fits and not _is_company(directory, tickets)
    return False


def _has_company(directory: ServerDirectory, state: State) -> bool:
    with suppress(OSError):
        return _is_company(directory, read_tickets(directory.turns, state.generation))
    return True


def _is_company(directory: ServerDirectory, tickets: Sequence[Ticket]) -> bool:
    """Tell whether requests are side by side; programs without tickets may have any number."""
    if len(tickets) > 1:
        return True
    return not {ticket.pid for ticket in tickets}.issuperset(requesters(directory.clients))


def wired_by_others(context: SupervisorContext) -> int:
    """Return the bytes that other servers wire."""
    return sum(state.wired for _, state in _others(context))


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

    def __init__(self, context: SupervisorContext, memory: Memory) -> None:
        self._context = context
        self._memory = memory
        self._needed = max(0, memory.least_to_start)
        self._place = time.monotonic(), context.directory.key
        self._asked_since: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}

    def try_reserve(self) -> Memory | None:
        """Take the memory where it is this start's turn, else ask others to make room."""
        context, budget = self._context, budget_bytes()
        if self._needed > budget:
            raise insufficient_memory(context.spec, self._memory, budget)
        with _memory_lock(context):
            others, unwilling = _others(context), self._unwilling()
            decision = decide(
                self._needed,
                self._place,
                budget,
                [_neighbour(directory, state, unwilling) for directory, state in others],
                is_impatient=bool(unwilling),
            )
            if decision.is_granted:
                granted = self._memory.within(decision.free)
                context.update(
                    reservation=max(0, granted.needed),
                    least=granted.least if self._memory.company else 0,
                    wired=self._wired(granted, others),
                    detail="",
                    **NOT_QUEUED,
                )
                return granted
            self._publish(decision, others)
        self._ask(others, decision)
        return None

    def _wired(self, memory: Memory, others: Servers) -> int:
        mode = wiring_mode(self._context.spec, inherited_environment())
        by_others = sum(state.wired for _, state in others)
        return wired_bytes(memory.weights, mode, likely_working_set(), by_others)

    def _unwilling(self) -> set[str]:
        """Return the keys of the servers that were asked for room long ago."""
        before = time.monotonic() - self._context.policy.drain_patience
        return {key for key, since in self._asked_since.items() if since < before}

    def _publish(self, decision: Decision, others: Servers) -> None:
        """Say what is waited for, so that later starts respect it and victims find it."""
        context = self._context
        blocked_by = {d.key: s.reservation for d, s in others if s.reservation}
        shrinks = dict(decision.shrinks)
        told = context.state.victims, context.state.shrinks, context.state.blocked_by
        if context.state.queued_at is None or told != (decision.victims, shrinks, blocked_by):
            asked = {*decision.victims, *shrinks} or blocked_by
            names = ", ".join(f"`{s.served_name}`" for d, s in others if d.key in asked)
            needed, free = self._needed / _GB, max(0, decision.free) / _GB
            context.update(
                phase="queued",
                needed=self._needed,
                queued_at=self._place[0],
                victims=decision.victims,
                shrinks=shrinks,
                blocked_by=blocked_by,
                shortfall=self._needed - decision.free,
                detail=f"needs {needed:.1f} GB, only {free:.1f} GB is free; waiting for {names}",
            )

    def _ask(self, others: Servers, decision: Decision) -> None:
        now = time.monotonic()
        asked = [(d, s) for d, s in others if d.key in (*decision.victims, *decision.shrinks)]
        if not asked:
            self._asked_since.clear()
        for directory, state in asked:
            self._asked_since.setdefault(directory.key, now)
            if now - self._asked_at.get(directory.key, -_ASK_AGAIN) >= _ASK_AGAIN:
                self._asked_at[directory.key] = now
                is_victim = directory.key in decision.victims
                (ask_to_make_room if is_victim else ask_to_shrink)(directory.state, state)
                state.supervisor.wake()


@contextmanager
def _memory_lock(context: SupervisorContext) -> Iterator[None]:
    """Hold `memory.lock`; a holder that somebody suspended is woken."""
    with opened_lock(_lock_file(context)) as lock:
        asked_at = time.monotonic()
        while not try_exclusive(lock):
            context.pause(context.policy.client_tick)
            if time.monotonic() - asked_at > context.policy.stop_patience:
                asked_at = time.monotonic()
                _wake_holder(_lock_file(context))
        own = context.state.supervisor
        with suppress(OSError):  # on a full disk it stays a lock
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{own.pid} {own.tag}".encode(), 0)
        yield


def _lock_file(context: SupervisorContext) -> Path:
    return context.directory.path.parent / "memory.lock"


def _wake_holder(path: Path) -> None:
    with suppress(OSError, ValueError):
        pid, tag = path.read_text(encoding="ascii").split()
        Identity(int(pid), tag).wake()


def _others(context: SupervisorContext) -> list[tuple[ServerDirectory, State]]:
    """Return the live servers and starts that have memory set aside or wait for it."""
    return supervised_servers(
        context.directory.key, lambda state: state.reservation or state.queued_at is not None
    )


def _neighbour(directory: ServerDirectory, state: State, unwilling: Collection[str]) -> Neighbour:
    """Return a server as the decision sees it; on an unwilling one's company nobody counts."""
    waits = state.queued_at is not None and state.phase == "queued" and not _is_suspended(state)
    is_ready = state.phase == "ready"
    is_idle = is_ready and _is_idle(directory)
    is_held = is_ready and not is_idle and directory.key in unwilling
    uses = read_uses(directory.clients)
    is_kept = any(use.keep_alive < 0 for use in uses) or bool(keepers(directory.clients))
    last_use = max((use.last_event for use in uses), default=0.0)
    return Neighbour(
        key=directory.key,
        reservation=state.reservation,
        spare=max(0, state.reservation - state.least) if can_shrink(state) and not is_held else 0,
        is_evictable=is_ready,
        is_leaving=state.phase == "stopping",
        is_idle=is_idle,
        order=(is_kept, last_use if is_idle else state.ready_at or 0.0),
        place=(state.queued_at, directory.key) if waits and state.queued_at is not None else None,
        needed=state.needed if waits else 0,
        victims=state.victims if waits else (),
        shrinks=state.shrinks if waits else {},
    )


def _is_suspended(state: State) -> bool:
    return state.supervisor.find() is not None and is_suspended(state.supervisor.pid)


def _end_lost_servers(context: SupervisorContext) -> None:
    """Get back the memory of servers whose supervisors were killed."""
    for directory, state in _states(context):
        if state.server is not None and not _is_supervised(directory):
            with suppress(ServerError):
                clean_up(directory, context.policy, "lost")


def _retire_other_protocols(context: SupervisorContext) -> None:
    """Ask the idle server of a release with another protocol to go; it has a key of its own."""
    for directory, state in _states(context):
        is_same = state.served_name == context.spec.served_name
        if is_same and state.protocol < PROTOCOL and state.phase == "ready":
            ask_to_make_room(directory.state, state)


def _states(context: SupervisorContext) -> Iterator[tuple[ServerDirectory, State]]:
    for directory in server_directories():
        with suppress(OSError):
            state = read_any_state(directory.state)
            if state is not None and directory.key != context.directory.key:
                yield directory, state


def _is_supervised(directory: ServerDirectory) -> bool:
    with suppress(OSError):
        return is_supervised(directory)
    return False


def _is_idle(directory: ServerDirectory) -> bool:
    with suppress(OSError), opened_lock(directory.lease_lock) as descriptor:
        if try_exclusive(descriptor):
            release(descriptor)
            return True
    return False
