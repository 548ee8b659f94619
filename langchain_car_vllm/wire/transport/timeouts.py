"""How long a request may take."""

import time

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.wire.transport.error_mapping import CONNECT_SECONDS, timeout_error

_NO_LIMIT_SECONDS = 1e9  # thirty years; sockets and locks refuse three hundred


class Clock:
    """Enforces `timeout` on this side; the server's own would count the queue.

    Args:
        endpoint: Whose answer is awaited.
        timeout: Seconds, None for no limit.
        total: Whether the limit is for the whole answer, or for a pause in it. Heartbeats keep a
            connection alive and count as pause.
        stopwatch: Measures the call.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout: float | None,
        *,
        total: bool,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._total = total
        self._since = time.monotonic()
        self._events = 0
        self.timeout = None if timeout is None or timeout > _NO_LIMIT_SECONDS else timeout
        self.stopwatch = stopwatch or Stopwatch()

    @property
    def step_timeouts(self) -> dict[str, float | None]:
        """The seconds that a single step may take, which catches a server that has fallen silent.

        By the names that httpcore has for them.
        """
        deadline = self.deadline
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        connect = CONNECT_SECONDS if left is None else min(left, CONNECT_SECONDS)
        return {"connect": connect, "read": left, "write": left, "pool": left}

    @property
    def deadline(self) -> float | None:
        """Monotonic seconds by which the next part has to be there, None for no limit."""
        return None if self.timeout is None else self._since + self.timeout

    @property
    def end(self) -> float | None:
        """Monotonic seconds by which a whole answer has to be there, None for no limit."""
        return self.deadline if self._total else None

    def check(self, events: int) -> None:
        """Raise where the time has run out.

        Args:
            events: How many parts of the answer have arrived, whether or not the user got them: one
                that is held back is not a pause of the server's.

        Raises:
            RequestTimeoutError: The time has run out.
        """
        if self.timeout is None:
            return
        now = time.monotonic()
        if events != self._events and not self._total:
            self._since, self._events = now, events
        elif now - self._since > self.timeout:
            raise timeout_error(self._endpoint, self.timeout)

    def leave_out(self, seconds: float) -> None:
        """Leave out what was spent before the request was sent, waiting for its turn."""
        self._since += seconds

    def resume(self) -> None:
        """Count a pause from now on: the user has taken his time over what he got."""
        if self.timeout is not None and not self._total:
            self._since = time.monotonic()
