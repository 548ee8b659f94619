"""Which requests were made from within another, whose server must not be waited for."""

from contextvars import ContextVar


class Request:
    """One request, from its first wish for a server until its lease is given back.

    Whoever consumes a stream makes further requests in the same context, or in one copied from it,
    so the requests under way there are those that this one may be nested in.

    Attributes:
        is_leased: Whether it holds a lease.
    """

    def __init__(self) -> None:
        self.is_leased = False
        self._outer = tuple(request for request in _requests.get() if request.is_leased)
        _requests.set((*self._outer, self))

    def is_nested(self) -> bool:
        """Tell whether a request that this one is part of holds a lease."""
        return any(request.is_leased for request in self._outer)


_requests: ContextVar[tuple[Request, ...]] = ContextVar("requests", default=())
