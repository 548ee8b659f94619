"""One request's hold on its process's lease, which is given back once, whoever comes to do it."""

from contextvars import ContextVar

from langchain_car_vllm.gate import Gate
from langchain_car_vllm.server.client.process_lease import ProcessLease
from langchain_car_vllm.support.process_state import ProcessLock


class Hold:
    """Taken once a request may begin; it knows nothing of `Waiting`, and so outlives it.

    Args:
        keep_alive: Seconds that the request wants the server to stay.

    Attributes:
        mutex: Held while the lease is taken, by whoever waits for it.
        is_given_up: Whether nobody waits any more.
        ticket: The order of the ticket with which the request was let in, empty for none.
        gate: Where it was let in.
    """

    def __init__(self, keep_alive: float) -> None:
        self._keep_alive = keep_alive
        # Those of the calls that this one is made from within.
        self._outer: tuple[Hold, ...] = tuple(hold for hold in _holds.get() if hold.is_taken)
        _holds.set((*self._outer, self))
        self._lease: ProcessLease | None = None
        self.mutex = ProcessLock(reentrant=False)
        self.is_given_up = False
        self.ticket = ""
        self.gate: Gate | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the lease is held."""
        return self._lease is not None

    def take(self, lease: ProcessLease) -> bool:
        """Take the lease; False while the server is stopping for idleness.

        Raises:
            StateDirectoryError: This process's record cannot be written.
        """
        self._lease = lease  # first, so that it is given back wherever this is interrupted
        if not lease.acquire(self, self._keep_alive):
            self._lease = None
            return False
        return True

    def give_up(self) -> None:
        """Give the lease back for good. Never blocks: a step under way does it at its end."""
        self.is_given_up = True
        self._outer = ()  # each has outer ones of its own
        if self.mutex.acquire(blocking=False):
            try:
                self.release()
            finally:
                self.mutex.release()

    def release(self) -> None:
        """Give the lease back, if it is held."""
        if self._lease is not None:
            self._lease.release(self, self._keep_alive)
            self._lease = None

    def is_nested(self) -> bool:
        """Tell whether a request that this one is part of holds a lease."""
        return any(hold.is_taken for hold in self._outer)

    def outer_tickets(self) -> frozenset[str]:
        """Return the orders of the tickets of the requests that this one is made within."""
        return frozenset(hold.ticket for hold in self._outer if hold.ticket)

    def outer_parts(self) -> int:
        """Return how much of the answers that this request is made within has been read."""
        return sum(gate.parts for gate in [hold.gate for hold in self._outer] if gate is not None)


_holds: ContextVar[tuple[Hold, ...]] = ContextVar("holds", default=())
