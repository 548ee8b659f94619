"""One request's place among those of a server: what it does with its ticket."""

import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.environment import CAR_VLLM_MLX_MAX_QUEUE
from langchain_car_vllm.errors import ServerBusyError
from langchain_car_vllm.server.client.status_look import StatusLook
from langchain_car_vllm.server.client.ticket_file import TicketFile, publish
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import (
    is_same_file,
    opened_lock,
    try_exclusive,
)
from langchain_car_vllm.server.suspension import Suspensions
from langchain_car_vllm.server.tickets import (
    Rules,
    Stage,
    Ticket,
    Verdict,
    decide,
    read_tickets,
    tear_up,
    tear_up_abandoned,
)
from langchain_car_vllm.support.os_limits import most_files
from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork

_PAUSE = 0.1
_LONGEST_LOOK = 1.0
_RELEASE = 0.5
"""Seconds until the server notices that a client is gone (vllm-mlx 0.6.0 looks every half)."""
_SLOWNESS = 10
"""Times as long as it takes to tell its status, a server takes to show a request that was sent."""
_OWN_PATIENCE = 1.0
_SHARE = 4
_MOST_SHOWN = 256
_FIRST = "0" * 20
_numbers = itertools.count()
_MORE_TICKS = 10
_MOST_TICKS = 250
_deciding: dict[Path, ProcessLock] = {}
_waiting: dict[str, dict[str, bool]] = {}
"""The orders of this process's tickets that wait, by the folder of their server, and whether others
see them."""
_sleeping: dict[str, dict[str, Callable[[], object]]] = {}
"""What wakes the requests of this process that sleep, by the folder of their server."""


def _is_awake() -> None:
    """Stand for what wakes a request that was to be woken while it did not sleep."""


def _most_shown() -> int:
    """Return how many tickets that wait may be open: a part of the files that this process may."""
    most = most_files()
    return _MOST_SHOWN if most is None else max(1, min(most // _SHARE, _MOST_SHOWN))


@contextmanager
def _alone_here(turn_lock: Path) -> Iterator[None]:
    """Have the threads of this process decide one after the other.

    Who finds the lock of all processes taken waits for a whole tick, of which many requests at once
    took one after the other.
    """
    lock = _deciding.get(turn_lock) or _deciding.setdefault(turn_lock, ProcessLock())
    is_alone = lock.acquire(timeout=_OWN_PATIENCE)
    try:
        yield
    finally:
        if is_alone:
            lock.release()


class Place:
    """One request's ticket: drawn, shown to others as it goes on, taken back.

    Others see it from when it has to wait, or has entered: who decides has them look afterwards.
    Of the requests of one process that wait only the first looks at the tickets: nobody overtakes.
    Where many wait, the last of them are seen by their own process alone until their turn is near.

    Args:
        directory: Of the server key.
        endpoint: The server.
        rules: What it can take.
        tokens: Of the prompt and the answer.
        suspensions: What is known of the programs before it.
        outer: The orders of the requests that it is made within. Others may be waiting for those,
            and those wait for it, so it goes first.
    """

    def __init__(
        self,
        directory: ServerDirectory,
        endpoint: Endpoint,
        rules: Rules,
        tokens: int,
        suspensions: Suspensions,
        *,
        outer: Collection[str] = (),
    ) -> None:
        self._suspensions = suspensions
        self._turn_lock = directory.turn_lock
        self._folder = os.fspath(directory.turns)
        self._endpoint = endpoint
        self._rules = rules
        self._verdict: Verdict = "behind"
        self._look: StatusLook | None = None
        self._clear_looks = 0
        self._refused_at = 0.0
        self._is_new = True
        self._abandoned_since: float | None = None
        self._outer = outer
        drawn = f"{time.monotonic_ns():020d}"
        order = f"{_FIRST if outer else drawn}-{os.getpid()}-{drawn}-{next(_numbers)}"
        self._ticket = Ticket(order, tokens, "waiting", endpoint.generation)
        self._file: TicketFile | None = None
        self._own_queue = _waiting.setdefault(self._folder, {})
        self._sleeping = _sleeping.setdefault(self._folder, {})

    def _is_behind(self) -> bool:
        """Tell whether it waits behind an older request of this process."""
        order = self._ticket.order
        return min(self._own_queue, default=order) < order

    @property
    def order(self) -> str:
        """What others know it by."""
        return self._ticket.order

    @property
    def is_read(self) -> bool:
        """Whether others wait for the first sign of its answer."""
        return self._ticket.stage == "prefill"

    def try_enter(self, current_rules: Callable[[], Rules], *, arrives_late: bool) -> Verdict:
        """Return `enter` where the request may be sent, else what it waits for.

        Args:
            current_rules: Tells what the server can take, asked while nobody else decides.
            arrives_late: Whether nothing shows when the answer began.

        Raises:
            OSError: The ticket cannot be written.
        """
        if self._ticket.stage != "waiting":
            return "enter" if self._is_noted() else "prefill"
        self._sleeping.pop(self._ticket.order, None)
        with ExitStack() as stack:
            stack.enter_context(_alone_here(self._turn_lock))
            is_behind = self._is_behind()
            if is_behind and self._ticket.order in self._own_queue and not self._is_new:
                return "behind"
            mutex = stack.enter_context(opened_lock(self._turn_lock))
            if not self._has_turn(mutex):
                self._show(self._ticket)
                self._take_from_suspended()
                return self._verdict
            self._rules = current_rules()
            generation, mine = self._endpoint.generation, self._ticket
            others = read_tickets(self._folder, generation, leave_out=mine.order)
            lost = self._suspensions.lost(others)
            tickets = self._read_notes([*self._without(lost, others), mine])
            # Others may not see the older ones of this process.
            self._verdict = (
                "behind" if is_behind else decide(mine, tickets, self._rules, self._outer)
            )
            if self._verdict != "enter":
                self._check_queue(tickets)
            if self._verdict == "abandoned":
                self._await_release(lost)
            else:
                self._abandoned_since = None
            if self._verdict == "enter" and is_same_file(mutex, self._turn_lock):
                self._enter(arrives_late=arrives_late)
            else:
                self._show(mine)
        if self._verdict != "enter":
            return self._verdict
        # The lock may have been replaced while this program was suspended.
        has_entered = self._ticket.stage in ("prefill", "answering")
        return "behind" if not has_entered else "enter" if self._is_noted() else "prefill"

    def _check_queue(self, tickets: list[Ticket]) -> None:
        """Refuse a request that is one too many; whoever waits already goes on to wait.

        Raises:
            ServerBusyError: As many wait already as `CAR_VLLM_MLX_MAX_QUEUE` lets wait.
        """
        most, self._is_new, is_new = CAR_VLLM_MLX_MAX_QUEUE.read(), False, self._is_new
        if not (most and is_new):
            return
        before = {t.order for t in tickets if t.stage == "waiting" and t.live}
        waiting = len((before | set(self._own_queue)) - {self._ticket.order})
        if waiting >= most:
            raise ServerBusyError(
                f"{waiting} requests are already waiting for `{self._endpoint.served_model}`",
                hint="try again later, or raise CAR_VLLM_MLX_MAX_QUEUE",
            )

    def _has_turn(self, mutex: int) -> bool:
        """Take the lock under which tickets are looked at, unless it was replaced meanwhile."""
        return try_exclusive(mutex) and is_same_file(mutex, self._turn_lock)

    def _take_from_suspended(self) -> None:
        """Replace the lock where a program may be holding it that was suspended for too long."""
        now = time.monotonic()
        if now - self._refused_at < _PAUSE:
            return
        self._refused_at = now
        self._suspensions.take_turn(self._folder, self._turn_lock, self._ticket.order)

    def _without(self, lost: Collection[str], tickets: list[Ticket]) -> list[Ticket]:
        """Take lost tickets for those of the dead; what the server may be reading stays for now."""
        for ticket in tickets:
            if ticket.order in lost and ticket.stage != "prefill":
                tear_up(f"{self._folder}/{ticket.name}")
        return [
            t._replace(live=t.live and t.order not in lost)
            for t in tickets
            if t.order not in lost or t.stage == "prefill"
        ]

    def pause(self, wake: Callable[[], object]) -> int:
        """Return how many ticks to wait until the next try: the more, the more are before it.

        Args:
            wake: Called where it is the first of this process, and another request moves on before.
        """
        order = self._ticket.order
        if self._sleeping.setdefault(order, wake) is _is_awake:
            return 0
        before = sum(other < order for other in list(self._own_queue))
        return min(1 + before * _MORE_TICKS, _MOST_TICKS)

    def _wake_first(self) -> None:
        self._sleeping.pop(self._ticket.order, None)
        if first := min(self._own_queue, default=""):
            self._sleeping.setdefault(first, _is_awake)()

    def begin(self) -> None:
        """Show that the answer has begun."""
        if self._file is not None and self.is_read:
            self._show(self._ticket._replace(stage="answering"))

    def leave(self, *, is_over: bool) -> None:
        """Take the ticket back; that of a prompt that may still be read stays without an owner."""
        file, self._file = self._file, None
        self._own_queue.pop(self._ticket.order, None)
        try:
            if file is None:
                return
            if is_over or not self.is_read:
                file.keep(self._ticket)
            else:
                file.let_go()
        finally:
            self._wake_first()

    def _show(self, ticket: Ticket) -> None:
        """Show others how far the request is.

        The ticket of a program that was suspended for too long was torn up: it shows a new one.
        """
        file, is_waiting = self._file, ticket.stage == "waiting"
        if file is None and is_waiting and not self._may_be_seen():
            self._own_queue[ticket.order] = False
            return
        if file is None or not file.show(ticket):
            self._file = None
            if file is not None:
                file.let_go()
            self._file = publish(self._folder, ticket)
        self._ticket = ticket
        if is_waiting:
            self._own_queue[ticket.order] = True
        else:
            self._own_queue.pop(ticket.order, None)
            self._wake_first()

    def _may_be_seen(self) -> bool:
        """Tell whether there is a file for it, as for one at each server in any case."""
        shown = sum(sum(list(queue.values())) for queue in list(_waiting.values()))
        return shown < _most_shown() or not any(list(self._own_queue.values()))

    def _enter(self, *, arrives_late: bool) -> None:
        """Take the place; note what the server worked on before where others cannot see it."""
        self._look = None
        stage: Stage = "prefill" if self._rules.serial_prefill else "answering"
        self._show(self._ticket._replace(stage=stage))
        if self.is_read and arrives_late:
            self._look = StatusLook(self._endpoint)

    def _is_noted(self) -> bool:
        """Tell whether what has to be known before the request is sent is known, or cannot be."""
        look = self._look
        if look is None:
            return True
        if not look.is_over() and time.monotonic() - look.began < _LONGEST_LOOK:
            return False
        self._look = None
        if (ids := look.ids()) is not None:
            self._note(look.began, ids)
        return True

    def _note(self, at: float, before: list[str]) -> None:
        """Write into the ticket what the server worked on before this request was sent.

        On a full disk others wait for the answer's end instead of its beginning.
        """
        if self._file is not None:
            with suppress(OSError):
                self._file.note(json.dumps([at, before]).encode())

    def _read_notes(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return the tickets with what the server's status tells of the one that is being read."""
        first = min((t.order for t in tickets if t.stage == "waiting" and t.live), default="")
        read = [t for t in tickets if t.stage == "prefill" and t.live]
        if first != self._ticket.order or len(read) != 1:
            return tickets
        note, look = self._read_note(read[0]), self._next_look()
        if note is None or look is None or look.began < note[0] or not look.has_begun(note[1]):
            return tickets
        return [t._replace(stage="answering") if t is read[0] else t for t in tickets]

    def _read_note(self, ticket: Ticket) -> tuple[float, list[str]] | None:
        with suppress(OSError, ValueError, TypeError):
            text = Path(self._folder, ticket.name).read_text(encoding="utf-8")
            at, before = json.loads(text)
            return float(at), [str(name) for name in before]
        return None

    def _next_look(self) -> StatusLook | None:
        """Return a look that has just ended, None while there is none; begin the next one."""
        look = self._look
        if look is not None and not look.is_over():
            return None
        if look is None or time.monotonic() - look.began > _PAUSE:
            self._look = StatusLook(self._endpoint)
        return look

    def _await_release(self, lost: Collection[str]) -> None:
        """Tear up what was abandoned once the server reads nothing any more, two looks long."""
        now = time.monotonic()
        if self._abandoned_since is None:
            self._abandoned_since, self._look, self._clear_looks = now, None, 0
        if now - self._abandoned_since < _RELEASE:
            return
        look = self._next_look()
        if look is None:
            return
        waited = now - self._abandoned_since
        if look.unlisted is None:
            is_hidden = waited < _RELEASE + _SLOWNESS * look.took
        else:
            # An answer that nobody reads stays under way when the engine has let go of it.
            is_hidden = look.unlisted > 0 and waited < self._suspensions.patience
        self._clear_looks = 0 if look.is_reading or is_hidden else self._clear_looks + 1
        if self._clear_looks > 1:
            tear_up_abandoned(self._folder, self._endpoint.generation, lost)
            self._abandoned_since = None


reset_after_fork(_waiting.clear)
reset_after_fork(_sleeping.clear)
