"""Server-sent events: from bytes to the JSON they carry."""

_MARK = b"\xef\xbb\xbf"
"""Of UTF-8, which a stream may begin with."""
_ENDS = (b"}", b"]")


def _is_begun(payload: bytes) -> bool:
    return payload.startswith(b"{") and not payload.endswith(_ENDS)


class EventReader:
    """Cuts a byte stream into the payloads of its `data:` lines.

    Servers write every event as one line, so a line is an event, whether a blank one follows or
    not: comments (`: heartbeat`), other fields and blank lines fall away. A line that ends in the
    middle of its JSON is joined with those up to the next blank one. Chunks may be cut anywhere.

    Attributes:
        held: Bytes of the line that has begun.
    """

    __slots__ = ("_begun", "_is_new", "_joined", "_parts", "held")

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._is_new = True
        self._parts: list[bytes] = []
        self._joined = 0
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
        found = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        if self._parts or any(map(_is_begun, found)):
            found = self._join(lines)
        self.held = len(rest) + self._joined
        return found

    def _join(self, lines: list[bytes]) -> list[bytes]:
        found = []
        for line in lines:
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if self._parts or _is_begun(payload):
                    self._parts.append(payload)
                    self._joined += len(payload)
                else:
                    found.append(payload)
            elif self._parts and not line.strip():
                found.append(b"\n".join(self._parts))
                self._parts.clear()
                self._joined = 0
        return found

    def end(self) -> list[bytes]:
        """Return the payload of a last event without an end, if there is one."""
        return [*self.feed(b"\n"), *self._join([b""])]
