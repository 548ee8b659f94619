"""The ready stage: crash watch, idleness, eviction."""

import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from langchain_car_vllm.errors import ServerCrashedError, StateDirectoryError
from langchain_car_vllm.server.idle import idle_deadline
from langchain_car_vllm.server.locks import release, try_exclusive
from langchain_car_vllm.server.process import is_suspended
from langchain_car_vllm.server.supervisor.child import Child, log_size
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.diagnosis import diagnose
from langchain_car_vllm.server.supervisor.elastic_room import ElasticRoom
from langchain_car_vllm.server.supervisor.eviction import Eviction
from langchain_car_vllm.server.supervisor.gpu_verdicts import find_verdict
from langchain_car_vllm.server.supervisor.restarts import recent_crashes
from langchain_car_vllm.server.supervisor.usage import ClientRecords
from langchain_car_vllm.server.wakefulness import Wakefulness

_MANY_RECORDS = 100
_LOST_GPU = "was stopped: its GPU accepts no more work"
_LONGEST_READ = 1_000_000
_REFUSED_SECONDS = 30.0


def serve(
    context: SupervisorContext,
    child: Child,
    clients: ClientRecords,
    awake: Wakefulness,
    room: ElasticRoom,
) -> NoReturn:
    """Watch over a ready server.

    Raises:
        StageEnded: It was idle, its memory is wanted and nobody is served, or clients can no longer
            see that it lives.
        ServerCrashedError: It died.
    """
    idleness, faults = _Idleness(context, clients), LogFaults(child.log)
    refused_since: float | None = None
    while True:
        code = child.exit_code()
        try:
            if code is not None or faults.found():
                served = len(clients.requesters())
                _report_crash(context, child, code, was_used=idleness.was_used, served=served)
            if not child.is_findable():
                raise StageEnded("lost")
            if awake.is_possible:
                awake.look(is_working=not all(map(is_suspended, clients.requesters())))
            child.trim_log(context.policy.log_limit)
            context.pause(min(idleness.seconds_to_next_look(), room.seconds_to_next_look()))
            refused_since = None
        except (OSError, StateDirectoryError):
            # What others use does not end for a look that the system refuses for a moment.
            now = time.monotonic()
            refused_since = refused_since or now
            if code is not None or now - refused_since > _REFUSED_SECONDS:
                raise
            context.rest(context.policy.idle_tick)


class LogFaults:
    """Finds in the log of a living server that it cannot answer any more.

    It answers a causeless 500 to everybody then, and would do so until it is started anew.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read: int | None = None
        with suppress(OSError):  # a look that is refused is the next one's
            self._read = log_size(log)

    def found(self) -> bool:
        """Tell whether what was written since the last look says so."""
        size = log_size(self._log)
        known = size if self._read is None else self._read
        begin, self._read = max(known, size - _LONGEST_READ), size
        if size <= begin:
            return False
        try:
            with self._log.open("rb") as file:
                file.seek(begin)
                verdict = find_verdict(file.read(size - begin).decode(errors="replace"))
        except FileNotFoundError:
            return False
        return verdict is not None and verdict.needs_restart


class _Idleness:
    """Finds the moment when nobody uses the server.

    The lease is tried only when the deadline has come, and a use that was recorded in the meantime
    wins over the lock. Whoever ends the life for idleness keeps the lease until it is over.
    """

    def __init__(self, context: SupervisorContext, clients: ClientRecords) -> None:
        self._context = context
        self._clients = clients
        self._floor = time.monotonic()
        self._was_busy = False
        self.was_used = False
        self._eviction = Eviction(context, clients)

    def seconds_to_next_look(self) -> float:
        """Return how long there is nothing to see.

        Raises:
            StageEnded: It is over.
        """
        now = time.monotonic()
        if self._clients.poll(now):
            self.was_used, self._was_busy = True, False
        if self._eviction.is_under_way(now):
            return self._context.policy.start_tick
        if len(self._clients.uses) > _MANY_RECORDS:
            self._clients.forget_dead(before=now)
        deadline = idle_deadline(self._clients.uses, self._floor, self._context.spec.keep_alive)
        if now >= deadline:
            self._end_if_unused(now)
        policy = self._context.policy
        return min(policy.idle_tick, max(deadline - now, policy.start_tick))

    def _end_if_unused(self, now: float) -> None:
        if self._clients.keepers() or not try_exclusive(self._context.lease):
            self._was_busy = True
            return
        try:
            # Whoever keeps it from now on holds the lease first.
            is_kept = bool(self._clients.keepers())
            is_used = is_kept or self._was_busy or self._clients.poll(time.monotonic())
        except OSError:
            release(self._context.lease)
            raise
        if not is_used:
            raise StageEnded("idle")
        if self._was_busy:
            # Nobody recorded this release: a client died in the middle of a request.
            self._floor, self._was_busy = now, False
        release(self._context.lease)


def _report_crash(
    context: SupervisorContext, child: Child, code: int | None, *, was_used: bool, served: int
) -> NoReturn:
    now = time.monotonic()
    was_stable = was_used and now - (context.state.ready_at or now) > context.policy.stable_after
    before = () if was_stable else recent_crashes(context.state.crashes, now, context.policy)
    context.note_crashes((*before, now))
    diagnosis = diagnose(code, child.log)
    error = ServerCrashedError(
        f"the server of `{context.spec.served_name}` "
        + (f"died: {diagnosis.sentence}" if code is not None else _LOST_GPU),
        hint=diagnosis.hint,
        exit_code=code,
        log_tail=diagnosis.tail,
        log_path=child.log,
        ending=diagnosis.sentence,
    )
    error.clients, error.crashed_at = served, now
    error.is_retryable = diagnosis.is_retryable
    raise error
