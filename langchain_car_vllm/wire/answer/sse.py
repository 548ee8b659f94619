"""Server-sent events: from bytes to the JSON they carry."""

import json

_MARK = b"\xef\xbb\xbf"
"""Of UTF-8, which a stream may begin with."""
_ENDS = (b"}", b"]")
_FAILURE = b"error"


def _is_begun(payload: bytes) -> bool:
    return payload.startswith(b"{") and not payload.endswith(_ENDS)


def _as_failure(said: bytes) -> bytes:
    """Return the payload of an event that tells of a failure, in whatever form that is told."""
    try:
        told = json.loads(said)
    except (ValueError, RecursionError):
        told = said.decode(errors="replace")
    if isinstance(told, dict) and "error" in told:
        return said
    return json.dumps({"error": told or {}}).encode()


class EventReader:
    """Cuts a byte stream into the payloads of its `data:` lines.

    Servers write every event as one line, so a line is an event, whether a blank one follows or
    not: comments (`: heartbeat`), other fields and blank lines fall away. A line that ends in the
    middle of its JSON is joined with those up to the next blank one. Chunks may be cut anywhere.
    A failure is one also outside of the data: llama.cpp told it in an `error:` line until September
    2025, gateways tell it in a line of bare JSON, or in an event of that name.

    Attributes:
        held: Bytes of the line that has begun.
    """

    __slots__ = ("_begun", "_is_failure", "_is_new", "_joined", "_parts", "held")

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._is_failure = False
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
        if self._parts or self._is_failure or _FAILURE in data or any(map(_is_begun, found)):
            found = self._join(lines)
        self.held = len(rest) + self._joined
        return found

    def _join(self, lines: list[bytes]) -> list[bytes]:
        found = []
        for line in lines:
            name, _, value = line.partition(b":")
            payload = value.strip()
            if name == b"data" and (self._parts or self._is_failure or _is_begun(payload)):
                self._parts.append(payload)
                self._joined += len(payload)
            elif name == b"data":
                found.append(payload)
            elif name == _FAILURE:
                found.append(_as_failure(payload))
            elif line.startswith(b'{"error"'):
                found.append(line)
            elif name == b"event":
                self._is_failure = payload == _FAILURE
            elif not line.strip():
                found.extend(self._joined_event())
        return found

    def _joined_event(self) -> list[bytes]:
        payload, self._joined = b"\n".join(self._parts), 0
        if self._is_failure and self._parts:
            payload = _as_failure(payload)
        self._parts.clear()
        self._is_failure = False
        return [payload] if payload else []

    def end(self) -> list[bytes]:
        """Return the payload of a last event without an end, if there is one."""
        return [*self.feed(b"\n"), *self._join([b""])]
