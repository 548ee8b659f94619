"""Server-sent events: from bytes to the JSON they carry."""


class EventReader:
    """Cuts a byte stream into the payloads of its `data:` lines.

    The server writes every event as one line, so a line is an event: comments (`: heartbeat`),
    other fields and blank lines fall away. Chunks may be cut anywhere.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def end(self) -> list[bytes]:
        """Return the payload of a last line without an end, if there is one."""
        return self.feed(b"\n")
