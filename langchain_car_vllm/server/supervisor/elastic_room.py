"""The room for company of a running server: given away where a start needs it, taken back later."""

import math
import os
import time
from contextlib import suppress

from langchain_car_vllm.server.command import Launch, serving_within
from langchain_car_vllm.server.locks import is_same_file, opened_lock, try_exclusive
from langchain_car_vllm.server.memory import Memory
from langchain_car_vllm.server.supervision import supervised_servers
from langchain_car_vllm.server.supervisor.context import SupervisorContext
from langchain_car_vllm.server.supervisor.reservation import grow_reservation
from langchain_car_vllm.server.suspension import Suspensions
from langchain_car_vllm.server.tickets import Ticket, kv_tokens, read_tickets
from langchain_car_vllm.support.replaced_files import replaced_file


class ElasticRoom:
    """What a server has set aside for others beside the one longest conversation.

    New requests keep to the smaller room at once. The memory is given away once those under way fit
    into it too, and taken back when requests want it, nobody waits for memory and some is free.
    """

    def __init__(self, context: SupervisorContext, launch: Launch) -> None:
        self._context = context
        self._full, self._memory = launch.memory, launch.granted
        self._told = launch.granted
        self._suspensions = Suspensions(context.policy.suspended_patience)
        self._is_asked = False
        self._grow_at = 0.0

    def seconds_to_next_look(self) -> float:
        """Give away what is wanted, or take back what is free, and return when to look again."""
        if not self._context.state.least:
            return math.inf
        seconds = self._look()
        if self._told != self._memory:
            self._tell_server()
        return seconds

    def _look(self) -> float:
        context, now = self._context, time.monotonic()
        self._is_asked = self._is_asked or context.inbox.shrink_requested
        context.inbox.shrink_requested = False
        if self._is_asked:
            kept = self._find_claim()
            self._is_asked = kept is not None and not self._shrink(self._full.within(kept))
            return context.policy.memory_tick if self._is_asked else math.inf
        if now >= self._grow_at:
            self._grow()
            is_promised = bool(context.state.shrinks)
            tick = context.policy.memory_tick if is_promised else context.policy.idle_tick
            self._grow_at = now + tick
        return max(self._grow_at - now, 0.0)

    def _grow(self) -> None:
        """Take what is free of the room that requests want, and let them have all there is."""
        context = self._context
        if self._memory.needed < self._full.needed:
            tickets = self._read_tickets()
            self._memory = grow_reservation(context, self._memory, self._full, tickets)
        serving = serving_within(context.state.serving, self._memory)
        if serving != context.state.serving:
            context.update(serving=serving)

    def _find_claim(self) -> int | None:
        """Return what live starts leave to this server, None where none wants any of it."""
        key = self._context.directory.key
        claims = supervised_servers(key, lambda state: key in state.shrinks)
        least = min((state.shrinks[key] for _, state in claims), default=None)
        return least if least is not None and least < self._context.state.reservation else None

    def _shrink(self, memory: Memory) -> bool:
        """Let new requests have the smaller room; tell whether those under way fit into it."""
        context, directory = self._context, self._context.directory
        with opened_lock(directory.turn_lock) as mutex:
            if not (try_exclusive(mutex) and is_same_file(mutex, directory.turn_lock)):
                order = f"0-{os.getpid()}"
                self._suspensions.take_turn(directory.turns, directory.turn_lock, order)
                return False
            serving = serving_within(context.state.serving, memory)
            if serving != context.state.serving:
                context.update(serving=serving)
            tickets = self._read_tickets()
        lost = self._suspensions.lost(tickets)
        # What the server may be reading counts in any case.
        under_way = [t for t in tickets if t.stage == "prefill" or t.order not in lost]
        admitted = [t.tokens for t in under_way if t.stage != "waiting"]
        fits = kv_tokens(admitted) <= (memory.room or 0)
        if not fits or len(admitted) > (memory.sequences or 1):
            return False
        self._memory = memory
        context.update(reservation=memory.needed, shrinks={})
        return True

    def _read_tickets(self) -> list[Ticket]:
        return read_tickets(self._context.directory.turns, self._context.state.generation)

    def _tell_server(self) -> None:
        """Have the server keep to it as well; see the mend `memory-limits`.

        While it loads it takes what it is told for an earlier start's.
        """
        if self._context.state.phase != "ready":
            return
        with suppress(OSError):
            with replaced_file(self._context.directory.memory_room) as file:
                file.write(b"%d" % self._memory.needed)
            self._told = self._memory
