"""Room in memory: set aside, taken from idle servers, waited for."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.errors import InsufficientMemoryError
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.locks import is_held, opened_lock, release, try_exclusive
from langchain_car_vllm.server.memory import budget_bytes, reserving
from langchain_car_vllm.server.recovery import clean_up
from langchain_car_vllm.server.state import State, ask_to_make_room, read_any_state
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext

_GB = 1e9


def reserve_memory(context: SupervisorContext, needed: int) -> None:
    """Set memory aside, sending idle servers away and waiting for busy ones.

    Raises:
        InsufficientMemoryError: It can never fit.
        StageEnded: Nobody waits for this server any more.
    """
    budget = budget_bytes()
    if needed > budget:
        raise InsufficientMemoryError(
            f"`{context.spec.served_name}` needs {needed / _GB:.1f} GB and all models together may "
            f"take {budget / _GB:.1f} GB",
            hint="choose a smaller model or quantisation, or raise CAR_VLLM_MLX_MEMORY_GB",
        )
    with opened_lock(context.directory.path.parent / "memory.lock") as lock:
        while not try_exclusive(lock):
            context.pause(context.policy.client_tick)
        _end_lost_servers(context)
        while not _reserve(context, needed, budget):
            release(lock)
            _check_somebody_waits(context)
            context.pause(context.policy.memory_tick)
            while not try_exclusive(lock):
                context.pause(context.policy.client_tick)


def _end_lost_servers(context: SupervisorContext) -> None:
    """Get back the memory of servers whose supervisors were killed."""
    for directory in server_directories():
        state = read_any_state(directory.state)
        if state is None or state.server is None or directory.key == context.directory.key:
            continue
        with suppress(OSError), opened_lock(directory.supervisor_lock) as descriptor:
            if is_held(descriptor):
                continue
            clean_up(directory, context.policy, "lost")


def _reserve(context: SupervisorContext, needed: int, budget: int) -> bool:
    others = reserving(context.directory.key)
    free = budget - sum(state.reservation for _, state in others)
    for directory, state in least_recently_used(others):
        if needed <= free:
            break
        if _evict(context, directory.supervisor_lock, state):
            others.remove((directory, state))
            free += state.reservation
    if needed <= free:
        context.update(reservation=needed, blocked_by={}, shortfall=0, detail="")
        return True
    blocked_by = {directory.key: state.reservation for directory, state in others}
    if context.state.blocked_by != blocked_by:
        names = ", ".join(f"`{state.served_name}`" for _, state in others)
        context.update(
            phase="queued",
            blocked_by=blocked_by,
            shortfall=needed - free,
            detail=f"needs {needed / _GB:.1f} GB, {free / _GB:.1f} GB are free; waits for {names}",
        )
    return False


def _evict(context: SupervisorContext, supervisor_lock: Path, state: State) -> bool:
    """Ask an idle server to go; False when somebody began to use it in time."""
    give_up_at = time.monotonic() + context.policy.stop_patience
    with opened_lock(supervisor_lock) as descriptor:
        while is_held(descriptor):
            phase = ask_to_make_room(supervisor_lock.with_name("state.json"), state)
            if phase is None or (phase == "ready" and time.monotonic() > give_up_at):
                return False
            context.pause(context.policy.start_tick)
    return True


def _check_somebody_waits(context: SupervisorContext) -> None:
    if try_exclusive(context.lease):
        raise StageEnded("idle")


def least_recently_used(
    servers: Sequence[tuple[ServerDirectory, State]],
) -> list[tuple[ServerDirectory, State]]:
    """Return the ready servers that serve nobody, in the order in which they are to go."""
    idle = [entry for entry in servers if entry[1].phase == "ready" and _is_idle(entry[0])]
    return sorted(idle, key=lambda entry: _last_use(entry[0].clients))


def _is_idle(directory: ServerDirectory) -> bool:
    with opened_lock(directory.lease_lock) as descriptor:
        return try_exclusive(descriptor)


def _last_use(clients: Path) -> tuple[bool, float]:
    """Return whether somebody wants it kept for ever, and when it was last used."""
    for_ever, latest = False, 0.0
    for record in clients.glob("[!.]*"):
        try:
            latest = max(latest, record.stat().st_mtime)
            for_ever = for_ever or record.read_text(encoding="ascii").startswith("-")
        except FileNotFoundError:
            continue
    return for_ever, latest
