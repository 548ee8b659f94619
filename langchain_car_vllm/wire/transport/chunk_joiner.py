"""Joins the chunks of an answer that one read has brought.

The server sends each token as a chunk of its own. httpcore hands every chunk on by itself, from h11
through ten functions, which is a third of what a token costs here. A client that is behind, since
its machine is busy or it reads many streams, finds several tokens in one read, and catches up.
"""

import re

_LINE_END = b"\r\n"
_HEAD_END = b"\r\n\r\n"
_IS_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"
_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_BEGUN_SIZE = re.compile(rb"[0-9a-fA-F]{0,8}\r?")
_MOST_HELD = 1 << 16


class ChunkJoiner:
    """Rewrites the bytes of one response; whatever it does not know goes through as it came."""

    __slots__ = ("_held", "_is_at_head", "_is_joining")

    def __init__(self) -> None:
        self._held = b""
        self._is_at_head = True
        self._is_joining = False

    def feed(self, data: bytes) -> bytes:
        """Return what is to be read in the place of `data`.

        Args:
            data: What came, empty at the end of the connection.

        Returns:
            The bytes; none where more must come first, and at the end.
        """
        if self._is_at_head:
            self._is_at_head = False
            head, end, body = data.partition(_HEAD_END)
            self._is_joining = bool(end) and _IS_CHUNKED in (head + _LINE_END).lower()
            return head + end + self._join(body) if self._is_joining else data
        if not self._is_joining:
            return data
        held, self._held = self._held, b""
        return self._join(held + data) if data else held

    def _join(self, data: bytes) -> bytes:
        chunks = []
        at = 0
        while size := _SIZE.match(data, at):
            begin = size.end()
            end = begin + int(size[1], 16)
            if end == begin or data[end : end + 2] != _LINE_END:
                break
            chunks.append(data[begin:end])
            at = end + 2
        rest = data[at:]
        if self._is_begun(rest):
            self._held, rest = rest, b""
        else:
            self._is_joining = False
        if not chunks:
            return rest
        joined = b"".join(chunks)
        return b"%x\r\n%b\r\n%b" % (len(joined), joined, rest)

    @staticmethod
    def _is_begun(rest: bytes) -> bool:
        """Tell whether bytes are the beginning of an ordinary chunk."""
        if (size := _SIZE.match(rest)) is None:
            return _BEGUN_SIZE.fullmatch(rest) is not None
        count = int(size[1], 16)
        end = rest[size.end() + count :]
        return count > 0 and len(rest) <= _MOST_HELD and end in (b"", b"\r")
