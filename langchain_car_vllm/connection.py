"""The connection of one request: `connect()`, `aconnect()`, and the replay where it breaks."""

import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import NamedTuple, Protocol

from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.errors import CarVllmError, ServerCrashedError
from langchain_car_vllm.gate import Gate, OpenGate
from langchain_car_vllm.progress import OnProgress, Progress
from langchain_car_vllm.progress.display import display_progress
from langchain_car_vllm.progress.run_events import Run
from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.support.closed_loops import ended_with_loop
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.errors import ConnectionFailedError, ServerFailedError
from langchain_car_vllm.wire.transport.remote import describe, find_description
from langchain_car_vllm.wire.transport.request_progress import Watch

log = logging.getLogger("langchain_car_vllm")
_SERVER = "langchain_car_vllm.server.client.lease"
_RUNTIME = "langchain_car_vllm.runtime.runtime"


class Connection(Protocol):
    """Somebody to talk to for the time of one request."""

    @property
    def endpoint(self) -> Endpoint:
        """How to talk to it."""

    @property
    def gate(self) -> Gate:
        """Tells when the request may be sent."""

    def explain(self) -> CarVllmError | None:
        """Return what happened to the server, None where it is alive and well."""

    async def aexplain(self) -> CarVllmError | None:
        """Return the same without blocking the event loop."""

    def was_alone(self, crash: ServerCrashedError) -> bool:
        """Tell whether this request was the only one under way when the server crashed."""

    def take_blame(self, crashes: Sequence[ServerCrashedError]) -> None:
        """Have crashes that this very request caused not count against its neighbours."""


class Attached:
    """An endpoint that somebody else runs: nothing is known of its life."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.gate: Gate = OpenGate()

    def explain(self) -> CarVllmError | None:
        """Return None: nobody here can tell."""
        return None

    async def aexplain(self) -> CarVllmError | None:
        """Return None: nobody here can tell."""
        return None

    def was_alone(self, crash: ServerCrashedError) -> bool:  # noqa: ARG002
        """Return False: nobody here can tell."""
        return False

    def take_blame(self, crashes: Sequence[ServerCrashedError]) -> None:
        """Do nothing: nobody here counts crashes."""


class Watched:
    """A connection whose server is asked what it is doing while its answer takes long."""

    def __init__(
        self, connection: Connection, on_progress: OnProgress, stopwatch: Stopwatch
    ) -> None:
        self.endpoint = connection.endpoint
        self.gate = connection.gate
        self.explain = connection.explain
        self.aexplain = connection.aexplain
        self.was_alone = connection.was_alone
        self.take_blame = connection.take_blame
        self.watch = Watch(connection.endpoint, on_progress, stopwatch)


class Target(NamedTuple):
    """Whom a request goes to, and how its user waits.

    Attributes:
        spec: The server to hold.
        endpoint: The endpoint of somebody else's to use instead, None to hold a server.
        wire: The module that talks to the server; it is imported while the server starts.
        startup_timeout: Seconds to wait for the server at most, None for no limit.
        on_progress: Told of the wait, None to show it.
        headers: Sent when an endpoint of somebody else's is asked what it is.
        patience: Seconds that such a question may take, None for no limit.
        read_files: Reads what a construction on an event loop left unread, None for nothing.
    """

    spec: ServerSpec
    endpoint: Endpoint | None
    wire: str
    startup_timeout: float | None = None
    on_progress: OnProgress | None = None
    headers: Headers = ()
    patience: float | None = None
    read_files: Callable[[], None] | None = None


@contextmanager
def connect(target: Target, run: Run | None = None) -> Iterator[Watched]:
    """Hold a server for the time of one request, which `run` is told of."""
    run = run or Run(target.spec.served_name)
    if target.read_files is not None:
        target.read_files()
    with ExitStack() as stack:
        shown = stack.enter_context(display_progress(target.spec.served_name, target.on_progress))
        on_progress = _both(shown, run.note)
        on_waiting = _import_meanwhile(target.wire, on_progress)
        connection: Connection
        if target.endpoint is not None:
            connection = Attached(describe(target.endpoint, target.headers, target.patience))
        else:
            import_whole(_SERVER)
            from langchain_car_vllm import server  # noqa: PLC0415 - not needed for construction

            connection = stack.enter_context(
                server.lease(
                    target.spec, startup_timeout=target.startup_timeout, on_progress=on_waiting
                )
            )
            _warn_of(connection.endpoint)
        run.stopwatch.note_ready()
        watched = Watched(connection, on_progress, run.stopwatch)
        stack.callback(watched.watch.end)
        yield watched


@asynccontextmanager
async def aconnect(target: Target, run: Run | None = None) -> AsyncIterator[Watched]:
    """Do what `connect` does without blocking the event loop."""
    run = run or Run(target.spec.served_name)
    if target.read_files is not None:
        await run_wait(target.read_files)
    async with AsyncExitStack() as stack:
        stack.push_async_exit(run.end)
        shown = stack.enter_context(display_progress(target.spec.served_name, target.on_progress))
        on_progress = _both(shown, run.note)
        on_waiting = _import_meanwhile(target.wire, on_progress)
        connection: Connection
        if target.endpoint is not None:
            known = find_description(target.endpoint, target.headers)
            if known is None:
                known = await run_wait(describe, target.endpoint, target.headers, target.patience)
            connection = Attached(known)
        else:
            if _SERVER not in sys.modules:
                await run_wait(import_whole, _SERVER)
            from langchain_car_vllm import server  # noqa: PLC0415 - not needed for construction

            connection = await stack.enter_async_context(
                server.alease(
                    target.spec, startup_timeout=target.startup_timeout, on_progress=on_waiting
                )
            )
            if _installation(connection.endpoint) not in _warned:
                await run_wait(_warn_of, connection.endpoint)
        run.stopwatch.note_ready()
        watched = Watched(connection, on_progress, run.stopwatch)
        stack.callback(watched.watch.end)
        stack.enter_context(ended_with_loop(watched.watch.end))
        yield watched


def _both(first: OnProgress, second: OnProgress) -> OnProgress:
    def told(progress: Progress) -> None:
        first(progress)
        second(progress)

    return told


class Replay:
    """Decides whether a call whose connection broke is sent once more.

    Only a crash, or a connection refused before the lease was re-checked, is repeated, once, and
    only if nothing of the answer was seen. What exhausted the memory would do so again. A request
    that crashed the server twice while it was the only one is to blame for it: it may not be
    retried, and its crashes do not count against the others. A server that is stopped answers what
    it was at with a failure, so that a failure is looked into, too.

    Attributes:
        seen: Whether the user has seen a part of the answer.
    """

    BROKEN = (ConnectionFailedError, ServerFailedError)

    def __init__(self) -> None:
        self.seen = False
        self._replayed = False
        self._own: list[ServerCrashedError] = []

    def decide(
        self, error: CarVllmError, reason: CarVllmError | None, connection: Connection
    ) -> None:
        """Return where the call is to be sent again; else raise what happened."""
        refused = isinstance(error, ConnectionFailedError) and error.refused
        if isinstance(reason, ServerCrashedError) and connection.was_alone(reason):
            self._own.append(reason)
        if len(self._own) > 1:
            connection.take_blame(self._own)
            raise _poisonous(self._own[-1]) from error
        crashed = (isinstance(reason, ServerCrashedError) and reason.is_retryable) or (
            reason is None and refused and connection.endpoint.managed
        )
        if crashed and not self.seen and not self._replayed:
            self._replayed = True
            return
        if reason is None:
            raise error
        raise reason from error


def _poisonous(crash: ServerCrashedError) -> ServerCrashedError:
    """Return the crash of a request that crashed the server before."""
    crash.is_retryable = False
    crash.message = f"this request crashed the server twice; {crash.message}"
    crash.hint = crash.hint or "change the request, or report it to vllm-mlx with the log"
    return crash


_warned: set[tuple[str | None, str | None]] = set()


def _installation(endpoint: Endpoint) -> tuple[str | None, str | None]:
    return endpoint.version, endpoint.engine_note


def _warn_of(endpoint: Endpoint) -> None:
    """Log what is worth knowing of a server's installation, once per process; looks at files."""
    _warned.add(_installation(endpoint))
    import_whole(_RUNTIME)  # not needed for construction
    from langchain_car_vllm.runtime.runtime import (  # noqa: PLC0415
        warn_about_what_is_passed_over,
    )
    from langchain_car_vllm.runtime.versions import warn_about  # noqa: PLC0415

    warn_about(endpoint.version)
    warn_about_what_is_passed_over()
    _warn_of_engine(endpoint.engine_note)


@lru_cache
def _warn_of_engine(note: str | None) -> None:
    """Log why a server does not use the better engine, once per process."""
    if note:
        log.warning("%s", note)


def _import_meanwhile(module: str, on_progress: OnProgress) -> OnProgress:
    """Have a module imported while a server starts, instead of after it."""
    if module in sys.modules:
        return on_progress

    def import_and_tell(progress: Progress) -> None:
        if progress.stage != "ready" and module not in sys.modules:
            name = "langchain_car_vllm.import"
            if not any(thread.name == name for thread in threading.enumerate()):
                # Without a thread it is imported by the request itself.
                with suppress(RuntimeError):
                    threading.Thread(
                        target=import_whole, args=(module,), name=name, daemon=True
                    ).start()
        on_progress(progress)

    return import_and_tell
