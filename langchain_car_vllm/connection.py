"""Somebody to talk to for the time of one request, and what to do when the connection breaks."""

from collections.abc import Sequence
from typing import Protocol

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError, ServerCrashedError
from langchain_car_vllm.gate import Gate, OpenGate
from langchain_car_vllm.progress import OnProgress
from langchain_car_vllm.wire.errors import ConnectionFailedError, ServerFailedError
from langchain_car_vllm.wire.transport.request_progress import Watch


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
    """An endpoint that somebody else runs: nothing is known of its life.

    Args:
        endpoint: The endpoint.
    """

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
    """A connection whose server is asked what it does where its answer lets one wait.

    Args:
        connection: Somebody to talk to.
        on_progress: Told of it.
    """

    def __init__(self, connection: Connection, on_progress: OnProgress) -> None:
        self.endpoint = connection.endpoint
        self.gate = connection.gate
        self.explain = connection.explain
        self.aexplain = connection.aexplain
        self.was_alone = connection.was_alone
        self.take_blame = connection.take_blame
        self.watch = Watch(connection.endpoint, on_progress)


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
        raise (reason or error) from error


def _poisonous(crash: ServerCrashedError) -> ServerCrashedError:
    """Return the crash of a request that crashed the server before."""
    crash.is_retryable = False
    crash.message = f"this request crashed the server twice; {crash.message}"
    crash.hint = crash.hint or "change the request, or report it to vllm-mlx with the log"
    return crash
