"""The room for company of a running server: given away where a start needs it, taken back later."""

import math
import time
from contextlib import suppress

from langchain_car_vllm.server.command import Launch, serving_within
from langchain_car_vllm.server.locks import opened_lock, try_exclusive
from langchain_car_vllm.server.memory import Memory
from langchain_car_vllm.server.supervision import supervised_servers
from langchain_car_vllm.server.supervisor.context import SupervisorContext
from langchain_car_vllm.server.supervisor.reservation import grow_reservation
from langchain_car_vllm.server.tickets import kv_tokens, read_tickets
from langchain_car_vllm.support.replaced_files import replaced_file


class ElasticRoom:
    """What a ready server has set aside for others beside the one longest conversation.

    New requests keep to the smaller room at once. The memory is given away once those under way fit
    into it too, and taken back when nobody waits for memory and some is free.
    """

    def __init__(self, context: SupervisorContext, launch: Launch) -> None:
        self._context = context
        self._full = launch.memory
        self._is_asked = False
        self._grow_at = 0.0

    def seconds_to_next_look(self) -> float:
        """Give away what is wanted, or take back what is free, and return when to look again."""
        context, now = self._context, time.monotonic()
        if not context.state.least:
            return math.inf
        self._is_asked = self._is_asked or context.inbox.shrink_requested
        context.inbox.shrink_requested = False
        if self._is_asked:
            kept = self._find_claim()
            self._is_asked = kept is not None and not self._shrink(self._full.within(kept))
            return context.policy.start_tick if self._is_asked else math.inf
        is_smaller = context.state.reservation < self._full.needed
        if (is_smaller or self._is_narrowed()) and now >= self._grow_at:
            self._grow_at = now + context.policy.idle_tick
            if (memory := grow_reservation(context, self._full)) is not None:
                self._tell_server(memory)
        return context.policy.idle_tick

    def _find_claim(self) -> int | None:
        """Return what live starts leave to this server, None where none wants any of it."""
        key = self._context.directory.key
        claims = supervised_servers(key, lambda state: key in state.shrinks)
        least = min((state.shrinks[key] for _, state in claims), default=None)
        return least if least is not None and least < self._context.state.reservation else None

    def _shrink(self, memory: Memory) -> bool:
        """Let new requests have the smaller room; tell whether those under way fit into it."""
        context = self._context
        with opened_lock(context.directory.turn_lock) as mutex:
            if not try_exclusive(mutex):
                return False
            serving = serving_within(context.state.serving, memory)
            if serving != context.state.serving:
                context.update(serving=serving)
            tickets = read_tickets(context.directory.turns, context.state.generation)
        admitted = [t.tokens for t in tickets if t.stage != "waiting"]
        fits = kv_tokens(admitted) <= (memory.room or 0)
        if not fits or len(admitted) > (memory.sequences or 1):
            return False
        self._tell_server(memory)
        context.update(reservation=memory.needed)
        return True

    def _is_narrowed(self) -> bool:
        """Tell whether requests keep to less than what is set aside, for a start that gave up."""
        state = self._context.state
        return state.serving.kv_room_tokens != self._full.within(state.reservation).room

    def _tell_server(self, memory: Memory) -> None:
        """Have the server keep to it as well; see the mend `memory-limits`."""
        path = self._context.directory.memory_room
        with suppress(OSError), replaced_file(path) as file:
            file.write(b"%d" % memory.needed)
