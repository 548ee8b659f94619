"""Where a request waits until the server can take it, as the wire sees it."""

from collections.abc import Callable
from typing import Protocol


class Gate(Protocol):
    """One request's way in: entered before it is sent, left when its answer has ended.

    Attributes:
        is_open: Whether everybody is let in at once.
        room: Tokens that a single request may have, None where nobody looks after that.
        parts: How much of the answer has been read, as whoever reads it notes.
    """

    parts: int
    is_open: bool
    room: int | None

    @property
    def awaits_beginning(self) -> bool:
        """Whether the first sign of the answer means anything to others."""

    def try_enter(self, tokens: int, *, arrives_late: bool) -> bool:
        """Return whether the request may be sent now; takes some milliseconds.

        Args:
            tokens: Of the prompt and the answer.
            arrives_late: Whether the answer arrives at its end, so that its beginning is not seen.
        """

    def pause(self, wake: Callable[[], object]) -> float:
        """Return the seconds until the next try.

        Args:
            wake: Called, from any thread, where it may be sooner.
        """

    def begin(self) -> None:
        """Note the first sign of the answer."""

    def leave(self, *, is_over: bool) -> None:
        """Note the end.

        Args:
            is_over: Whether the server is done with the request; False where the connection was
                closed on it.
        """


class OpenGate:
    """Lets everybody in: for endpoints that somebody else runs."""

    parts: int = 0
    is_open: bool = True
    awaits_beginning: bool = False
    room: int | None = None

    def try_enter(self, tokens: int, *, arrives_late: bool) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def pause(self, wake: Callable[[], object]) -> float:  # noqa: ARG002
        """Return 0."""
        return 0.0

    def begin(self) -> None:
        """Do nothing."""

    def leave(self, *, is_over: bool) -> None:
        """Do nothing."""
