"""Server-sent events: from bytes to the JSON they carry."""

_MARK = b"\xef\xbb\xbf"
"""Of UTF-8, which a stream may begin with."""


class EventReader:
    """Cuts a byte stream into the payloads of its `data:` lines.

    The server writes every event as one line, so a line is an event: comments (`: heartbeat`),
    other fields and blank lines fall away. Chunks may be cut anywhere.

    Attributes:
        held: Bytes of the line that has begun.
    """

    __slots__ = ("_begun", "_is_new", "held")

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._is_new = True
        self.held = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order."""
        if b"\n" not in data:  # joined once it ends: a line may be megabytes long
            self._begun.append(data)
            self.held += len(data)
            return []
        if self._begun:
            data = b"".join((*self._begun, data))
        if self._is_new:
            self._is_new = False
            data = data.removeprefix(_MARK)
        *lines, rest = data.split(b"\n")
        self._begun = [rest] if rest else []
        self.held = len(rest)
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def end(self) -> list[bytes]:
        """Return the payload of a last line without an end, if there is one."""
        return self.feed(b"\n")
