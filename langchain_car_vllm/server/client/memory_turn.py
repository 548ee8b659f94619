"""Whose turn it is in memory, as one request sees it: to wait, to pass, or to give up."""

import time

from langchain_car_vllm.errors import InsufficientMemoryError
from langchain_car_vllm.server.client.hold import Hold
from langchain_car_vllm.server.client.process_lease import ProcessLease, process_leases
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.state import State

_UNSURE = 10
"""How much longer is waited where no nesting can be seen, or where others might make room: they may
in their turn be waiting for this process."""


class MemoryTurn:
    """One request's place among those that want memory."""

    def __init__(self, hold: Hold, served_name: str, policy: Policy) -> None:
        self._hold = hold
        self._served_name = served_name
        self._policy = policy
        self._began = time.monotonic()
        self._blocked_since: float | None = None

    def is_others(self, process_lease: ProcessLease) -> bool:
        """Tell whether the server is to make room for another, so that no new request may begin.

        A request from within another would wait for itself, so it passes; where threads hide that,
        it passes after a while.
        """
        state = process_lease.state()
        if state is None or not (state.phase == "ready" and state.is_wanted):
            return False
        waited = time.monotonic() - self._began
        is_own = waited > self._policy.drain_patience and any(h.holders for h in process_leases())
        if is_own or self._hold.is_nested():
            return False
        return process_lease.is_author_alive(state)

    def check_not_blocking_itself(self, state: State) -> None:
        """Raise where this very process holds the memory that is waited for, and keeps it.

        Another thread's request may end and make room, so it is not raised at once, and late where
        this request does not seem to be part of the one that holds it, or where what other
        processes hold would do.

        Raises:
            InsufficientMemoryError: It waited long enough.
        """
        used = {held.directory.key for held in process_leases() if held.holders}
        if not state.shortfall or not used & state.blocked_by.keys():
            self._blocked_since = None
            return
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        others = sum(size for key, size in state.blocked_by.items() if key not in used)
        is_sure = self._hold.is_nested() and others < state.shortfall
        patience = self._policy.own_memory * (1 if is_sure else _UNSURE)
        if now - self._blocked_since > patience:
            error = InsufficientMemoryError(
                f"`{self._served_name}` cannot start while this process uses another model: "
                f"{state.detail}",
                hint="end that stream first, choose smaller models, or raise "
                "CAR_VLLM_MLX_MEMORY_GB",
            )
            error.is_retryable = True
            raise error
