"""One caller's way to a ready server, in short steps that threads and tasks can take alike."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import cache, partial

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import (
    CarVllmError,
    PackageChangedError,
    ServerCrashedError,
    ServerError,
    ServerStartError,
    ServerStartingError,
    ServerStoppedError,
    StateDirectoryError,
)
from langchain_car_vllm.progress import OnProgress, Progress, Teller
from langchain_car_vllm.server.client.hold import Hold
from langchain_car_vllm.server.client.keeper import Keeper
from langchain_car_vllm.server.client.liveness import is_serving
from langchain_car_vllm.server.client.memory_turn import MemoryTurn
from langchain_car_vllm.server.client.outcome import crash_error, verdict
from langchain_car_vllm.server.client.process_lease import ProcessLease
from langchain_car_vllm.server.client.replacement import Replacement
from langchain_car_vllm.server.client.spawn import NoReportError, Start
from langchain_car_vllm.server.client_record import promise
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import PROTOCOL, ServerSpec
from langchain_car_vllm.server.state import (
    STARTING,
    State,
    decode_error,
    is_of_this_container,
    read_header,
)
from langchain_car_vllm.support.process_state import KeptProperty
from langchain_car_vllm.version import VERSION

log = logging.getLogger(__name__)

_LOST_STARTS = 3
_AFTERMATH = 0.3
_EAGER = 2.0
_PATIENT = 4


class Waiting:
    """Takes the lease, starts what is missing and tells when the server is ready.

    No step takes longer than some milliseconds, and giving up never cancels the start: others may
    wait for it.

    Args:
        find_process_lease: Returns this process's side of the server key; the first step calls it,
            since it looks at files.
        spec: What to serve.
        policy: How long to wait for what.
        startup_timeout: Seconds to wait at most, None for no limit.
        on_progress: Called in the waiting thread with every change.
        keeper: Keeps the server beyond the request.

    Attributes:
        hold: The lease, once it is taken; whoever gives it up ends the wait.
    """

    def __init__(
        self,
        find_process_lease: Callable[[], ProcessLease],
        spec: ServerSpec,
        policy: Policy,
        startup_timeout: float | None,
        on_progress: OnProgress | None,
        *,
        keeper: Keeper | None = None,
    ) -> None:
        self.policy = policy
        self._find_process_lease = find_process_lease
        self._spec = spec
        self._keeper = keeper
        self.hold = Hold(spec.keep_alive)
        self._memory_turn = MemoryTurn(self.hold, spec.served_name, policy)
        self._start: Start | None = None
        self._known: int | None = None
        self._lost = 0
        self._unreadable_since: float | None = None
        self._began = self._news_at = time.monotonic()
        self._news: State | None = None
        self._startup_timeout = startup_timeout
        self._teller = Teller(on_progress)

    @KeptProperty
    def _process_lease(self) -> ProcessLease:
        return self._find_process_lease()

    @KeptProperty
    def _replacement(self) -> Replacement:
        return Replacement(self._process_lease, self._spec, self.policy)

    @property
    def tick(self) -> float:
        """Seconds until the next step; a wait that lasts is looked at less often."""
        patient = time.monotonic() - self._began > _EAGER
        return self.policy.client_tick * (_PATIENT if patient else 1)

    def step(self) -> Endpoint | None:
        """Come one step closer; return the endpoint once it is ready and the lease is held.

        Raises:
            CarVllmError: The server cannot be had, for the reason that its type tells.
            ServerStartingError: `startup_timeout` ran out; the start goes on.
        """
        with self.hold.mutex:
            try:
                endpoint = None if self.hold.is_given_up else self._advance()
            finally:
                if self.hold.is_given_up:
                    self.hold.release()
        if self.hold.is_given_up:
            # It was given up between the look above and the end of the guard.
            self.hold.give_up()
        if endpoint is None:
            self._check_timeout()
        return endpoint

    def interrupt(self) -> None:
        """Say what becomes of a start that a user no longer waits for."""
        if self._teller.stage not in (None, "ready"):
            log.warning(
                "the start of `%s` continues until no running program wants it any more; "
                "`car-vllm stop` ends it at once",
                self._spec.served_name,
            )

    @property
    def directory(self) -> ServerDirectory:
        """Of the server key."""
        return self._process_lease.directory

    def was_alone(self, crash: ServerCrashedError) -> bool:
        """Tell whether no other request of any process was under way at a crash."""
        return crash.clients == 1 and self._process_lease.holders == 1

    def explain_step(self, endpoint: Endpoint, waited: float) -> tuple[CarVllmError | None] | None:
        """Look at what became of a server whose connection broke.

        The state tells it some milliseconds after a death.

        Returns:
            None while it is not known, else `ServerStoppedError`, `ServerCrashedError`, or None
            where the server is well, in a tuple.
        """
        supervised = self._process_lease.is_supervisor_alive()
        state = self._process_lease.state()
        if error := verdict(state, endpoint, supervised=supervised):
            return (error,)
        alive = self._process_lease.is_server_alive()
        if alive and waited > _AFTERMATH:
            return (None,)
        if waited > self.policy.settle:
            return (None if alive else crash_error(endpoint, "died"),)
        return None

    def _advance(self) -> Endpoint | None:
        self._look_up()
        if not self.hold.is_taken and (obstacle := self._try_lease()):
            if (state := self._process_lease.state()) is not None:
                self._watch(state)
            self._teller.tell(Progress("queued", obstacle))
            return None
        supervised = self._process_lease.is_supervisor_alive()
        state = self._process_lease.state()
        if state and supervised:
            self._check_container(state)
        self._note_generation(state, supervised=supervised)
        if state and supervised and self._is_ready(state):
            directory = self._process_lease.directory
            if self._keeper is not None:
                self._keeper.keep(self._process_lease)
            endpoint = state.endpoint(
                directory.log, partial(is_serving, directory, state.generation)
            )
            self._teller.tell(Progress("ready"))
            _warn(state.warning)
            return endpoint
        if supervised:
            self._watch(state)
        else:
            self._consider(state)
        return None

    def _is_ready(self, state: State) -> bool:
        """Tell whether a state speaks of a server that lives, under the supervisor that wrote it.

        A new supervisor holds the lock for an instant before it has cleaned up after the old one.
        """
        return (
            state.phase == "ready"
            and state.port is not None
            and self._process_lease.is_author_alive(state)
            and self._process_lease.is_server_alive()
        )

    def _look_up(self) -> None:
        """Look at the lock files that the names lead to now: those that were opened may be gone."""
        known = self.__dict__.get("_process_lease")
        self._process_lease = self._find_process_lease()
        if known is not None and known is not self._process_lease:
            self.hold.release()
            self._start = None
            self.__dict__.pop("_replacement", None)

    def _try_lease(self) -> str | None:
        """Take the lease; return what is waited for where it cannot be had yet."""
        if self._replacement.is_under_way():
            return "waiting for the previous server to stop"
        if self._memory_turn.is_others(self._process_lease):
            return "waiting for memory: another model gets it first"
        is_had = self.hold.take(self._process_lease)
        return None if is_had else "waiting for the server to stop"

    def _note_generation(self, state: State | None, *, supervised: bool) -> None:
        """Remember the last generation that ended before this wait began."""
        if self._known is None:
            self._known = state.generation if state else 0
            if state and supervised and state.phase in STARTING:
                self._known -= 1

    def _check_container(self, state: State) -> None:
        """Refuse the server of another container: its port is somebody else's here.

        What a container that is gone left behind is its successor's to clean up.
        """
        if not is_of_this_container(state) and self._process_lease.is_author_alive(state):
            raise StateDirectoryError(
                self._process_lease.directory.path,
                "another container on this machine uses it",
                hint="give each container its own CAR_HOME",
            )

    def _rouse(self, state: State | None) -> None:
        """Wake a supervisor that somebody suspended, or a caller would wait for it forever."""
        now = time.monotonic()
        if state is not self._news:
            self._news, self._news_at = state, now
        elif state is not None and now - self._news_at > self.policy.stop_patience:
            self._news_at = now
            state.supervisor.wake()

    def _watch(self, state: State | None) -> None:
        self._rouse(state)
        if state is None:
            self._check_readable()
            return
        self._unreadable_since = None
        if state.phase in STARTING:
            self._memory_turn.check_not_blocking_itself(state)
            self._teller.tell(Progress(state.phase, state.detail, state.done, state.total))  # type: ignore[arg-type]
        elif state.phase == "stopping":
            if state.error is not None:
                raise decode_error(state.error)
            self._teller.tell(Progress("queued", "waiting for the server to stop"))

    def _check_readable(self) -> None:
        """Raise where a supervisor runs and its state stays unreadable."""
        now = time.monotonic()
        self._unreadable_since = self._unreadable_since or now
        if now - self._unreadable_since < self.policy.handshake:
            return
        directory = self._process_lease.directory
        if (header := read_header(directory.state)) and header.protocol != PROTOCOL:
            raise PackageChangedError(VERSION, header.package)
        raise ServerError(
            f"the state of `{self._spec.served_name}` cannot be read",
            hint=f"end the supervisor by hand and remove `{directory.path}`",
            log_path=directory.supervisor_log,
        )

    def _consider(self, state: State | None) -> None:
        """Nobody supervises: raise what ended the start we waited for, or start."""
        is_told = state is not None and state.generation > (self._known or 0)
        if self._start is not None:
            if self._start.is_alive():
                return
            self._judge_attempt(self._start.error, is_told=is_told)
        if state is not None and is_told:
            self._judge(state)
            self._known = state.generation
        self._start = self._process_lease.begin_start(self._spec, self.policy)

    def _judge_attempt(self, error: CarVllmError | None, *, is_told: bool) -> None:
        """Raise what kept a supervisor from being there.

        Args:
            error: What the attempt came to.
            is_told: Whether its supervisor wrote a state, which is judged, and counted, by itself.
        """
        if error is None:
            return
        if not isinstance(error, NoReportError):
            raise copy(error)
        self._lost += not is_told
        if self._lost >= _LOST_STARTS:
            raise copy(error)

    def _judge(self, state: State) -> None:
        """Raise the failure of a start that we waited for; a lost one is tried again."""
        if state.phase == "stopped" and state.reason == "failed" and state.error is not None:
            raise decode_error(state.error)
        if state.phase == "stopped" and state.reason == "user":
            raise ServerStoppedError(
                f"`{self._spec.served_name}` was stopped while it was starting"
            )
        if state.reason == "crash":
            return
        self._lost += 1
        if self._lost >= _LOST_STARTS:
            raise ServerStartError(
                f"the supervisor of `{self._spec.served_name}` was lost {self._lost} times",
                log_path=self._process_lease.directory.supervisor_log,
            )

    def _check_timeout(self) -> None:
        limit = self._startup_timeout
        if limit is not None and time.monotonic() - self._began > limit:
            stage = self._teller.stage or "queued"
            with suppress(OSError, StateDirectoryError):
                state = self._process_lease.state()
                generation = max((self._known or 0) + 1, state.generation if state else 0)
                promise(self.directory.clients, generation)
            raise ServerStartingError(
                f"`{self._spec.served_name}` is not ready after {limit:g} s (stage: {stage}); "
                "the start continues",
                hint="call again later, or raise `startup_timeout`",
                log_path=self._process_lease.directory.log,
            )


@cache
def _warn(warning: str | None) -> None:
    """Log what the user should know, once per process."""
    if warning is not None:
        log.warning("%s", warning)
