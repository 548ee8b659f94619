"""Text that waits for more, and is not looked through at each part of it."""

_GROWTH = 16


class WaitingText:
    """Keeps text until it is clear what it is.

    What was looked through without a result is looked through again once it has grown by a part of
    its length: looked through at each event, a long text would cost the square of it.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._enough = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._parts)

    def add(self, part: str) -> bool:
        """Add a part, and return whether it is worthwhile to look again."""
        self._parts.append(part)
        self._length += len(part)
        return self._length >= self._enough

    def keep(self, rest: str = "") -> None:
        """Keep what is left after a look."""
        self._parts = [rest] if rest else []
        self._length = len(rest)
        self._enough = self._length + self._length // _GROWTH
