"""The gate of a server: who may send, among the requests of all processes."""

import os
from collections.abc import Callable
from contextlib import suppress

from langchain_car_vllm.endpoint import Endpoint, Serving
from langchain_car_vllm.environment import CAR_VLLM_MLX_ADMISSION, CAR_VLLM_MLX_MAX_QUEUE
from langchain_car_vllm.errors import InsufficientMemoryError
from langchain_car_vllm.progress import OnProgress, Progress
from langchain_car_vllm.server.client.hold import Hold
from langchain_car_vllm.server.client.place import Place
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.state import known_state
from langchain_car_vllm.server.suspension import Suspensions
from langchain_car_vllm.server.tickets import Rules, Verdict
from langchain_car_vllm.support.process_state import ProcessLock
from langchain_car_vllm.support.stall import Stall

_TEXTS: dict[Verdict, str] = {
    "behind": "waiting behind earlier requests",
    "prefill": "waiting while another request's prompt is read",
    "abandoned": "waiting for the server to drop an abandoned request",
    "room": "waiting for memory that other requests use",
    "company": "waiting for one of the concurrent requests to end",
    "within": "waiting for the answer that this call was made in to end",
}


class Admission:
    """The gate of a server that this package runs, for one request after the other.

    Args:
        directory: Of the server key.
        endpoint: The server.
        on_progress: Told what is waited for.
        tick: Seconds between two tries.
        suspended_patience: Seconds for a suspended program to go on, before its turn is taken back.
        hold: Tells what the request is made within.
        own_memory: Seconds to wait for the room of what it is made within.

    Attributes:
        is_open: Whether the server needs nobody to look after it.
        room: Tokens that a single request may have, None for any number.
        parts: How much of the answer has been read.
    """

    def __init__(
        self,
        directory: ServerDirectory,
        endpoint: Endpoint,
        on_progress: OnProgress | None,
        tick: float,
        suspended_patience: float = 30.0,
        *,
        hold: Hold | None = None,
        own_memory: float = 30.0,
    ) -> None:
        self._tick = tick
        self._hold = hold
        self._own_memory = own_memory
        self._standstill: Stall | None = None
        self.parts = 0
        self._suspended_patience = suspended_patience
        self._directory = directory
        self._endpoint = endpoint
        self._on_progress = on_progress
        self._rules = rules_of(endpoint)
        self.is_open = self._rules == Rules()
        self.room = self._rules.room
        self._process = os.getpid()
        self._mutex = ProcessLock(reentrant=False)
        self._place: Place | None = None
        self._is_closed = self._is_leaving = False
        self._shown: Verdict | None = None

    def try_enter(self, tokens: int, *, arrives_late: bool) -> bool:
        """Return whether the request may be sent now.

        Raises:
            StateDirectoryError: Tickets cannot be written or looked at.
            ServerBusyError: The queue has an end, and it is full.
            InsufficientMemoryError: It is made within an answer that leaves no room for it.
        """
        if self.is_open:
            return True
        with self._mutex:
            if self._is_closed:
                return False
            self._is_leaving = False
            try:
                with explain_os_errors(self._directory.turns):
                    if self._place is None:
                        self._place = self._draw(tokens)
                    verdict = self._place.try_enter(self._current_rules, arrives_late=arrives_late)
                    if self._hold is not None and verdict == "enter":
                        self._hold.ticket, self._hold.gate = self._place.order, self
            finally:
                if self._is_leaving:
                    self._give_back(is_over=False)
        self._show(verdict)
        self._check_room_within(verdict)
        return verdict == "enter"

    def pause(self, wake: Callable[[], object]) -> float:
        """Return the seconds until the next try, and have `wake` called where it may be sooner."""
        place = self._place
        return self._tick * (1 if place is None else place.pause(wake))

    def _draw(self, tokens: int) -> Place:
        suspensions = Suspensions(self._suspended_patience)
        outer = () if self._hold is None else self._hold.outer_tickets()
        return Place(self._directory, self._endpoint, self._rules, tokens, suspensions, outer=outer)

    def _check_room_within(self, verdict: Verdict) -> None:
        """Raise where the answer that this call is made within leaves no room, and stands still.

        It may be read on meanwhile, by another task.
        """
        if self._hold is None or verdict != "within":
            self._standstill = None
            return
        self._standstill = self._standstill or Stall(self._own_memory, self._hold.outer_parts)
        if self._standstill.is_stalled():
            error = InsufficientMemoryError(
                f"`{self._endpoint.served_model}` has no memory for a request besides the answer "
                "that it is made in",
                hint="read that answer to the end first, or make both shorter",
            )
            error.is_retryable = True
            raise error

    def _current_rules(self) -> Rules:
        """Return the rules as the state has them: the room shrinks where others need it."""
        state = known_state(self._directory.state)
        if state is not None and state.generation == self._endpoint.generation:
            self._rules = rules_of(state.serving)
        return self._rules

    @property
    def holds_place(self) -> bool:
        """Whether there is a place to give back."""
        return self._place is not None

    @property
    def awaits_beginning(self) -> bool:
        """Whether others wait for the first sign of the answer."""
        place = self._place
        return place is not None and place.is_read

    def begin(self) -> None:
        """Let the next prompt be read."""
        place = self._place
        if place is not None and self._process == os.getpid():
            with suppress(OSError):
                place.begin()

    def leave(self, *, is_over: bool) -> None:
        """Give the place back; another request may enter afterwards.

        It never blocks, since a try under way does it at its end, and it never raises: an answer
        that was given is not lost for a ticket.
        """
        self._is_leaving = True
        if self._mutex.acquire(blocking=False):
            try:
                self._give_back(is_over=is_over)
            finally:
                self._mutex.release()

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_closed = True
        self.leave(is_over=False)

    def _give_back(self, *, is_over: bool) -> None:
        place, self._place, self._shown = self._place, None, None
        if self._hold is not None:
            self._hold.ticket, self._hold.gate = "", None
        # In a forked child it is not the child's to give back.
        if place is not None and self._process == os.getpid():
            with suppress(OSError):
                place.leave(is_over=is_over)

    def _show(self, verdict: Verdict) -> None:
        if verdict == self._shown or (verdict == "enter" and self._shown is None):
            return
        self._shown = verdict
        if self._on_progress is not None:
            text = _TEXTS.get(verdict)
            self._on_progress(Progress("queued", text) if text else Progress("ready"))


def rules_of(endpoint: Serving) -> Rules:
    """Return what a server can take, as far as this package has to look after it.

    A batched multimodal server answers wrongly where a short prompt arrives while another one is
    read (vllm-mlx 0.6.0), unless it is mended. The memory is looked after unless
    `CAR_VLLM_MLX_ADMISSION` is off. Where the queue has an end, so that others are refused, the one
    of the simple engine is kept here.
    """
    batched = endpoint.engine == "batched"
    serial = batched and bool(endpoint.multimodal) and not endpoint.reads_in_order
    if endpoint.engine == "simple" and CAR_VLLM_MLX_MAX_QUEUE.read():
        return Rules(sequences=1)  # its own queue has no end
    if not CAR_VLLM_MLX_ADMISSION.read():
        return Rules(serial)
    return Rules(
        serial,
        endpoint.kv_room_tokens if batched else None,
        endpoint.max_sequences if batched else None,
    )
