"""JSON that begins no tool call, read as it comes: what stands in it is told, not called."""

import re
from collections.abc import Collection

# What JSON is made of beside texts and brackets; words of a sentence soon hold other letters.
_PIECES = re.compile(r'[\s:,+\-.0-9truefalsnE]+|[{}\[\]"]')
_QUOTED = re.compile(r'[^"\\]+|\\.|"', re.DOTALL)
_STEPS = {"{": 1, "[": 1, "}": -1, "]": -1}
_LONGEST_KEY = 20


class OtherJson:
    """One value whose beginning shows that it is not a call.

    It ends with its last bracket, at what no JSON has, such as a value behind another without a
    comma, and before the value of a key that says that calls follow: small models write out the
    whole answer of an API.

    Args:
        call_keys: These keys.
        outer_keys: Those that say so of a value in the outermost object alone: a step of an agent
            has one call, where a plan has many.
    """

    def __init__(self, call_keys: Collection[str], outer_keys: Collection[str] = ()) -> None:
        self._call_keys = call_keys
        self._outer_keys = outer_keys
        self._depth = 0
        self._is_quoted = False
        self._text = ""  # the last one, which is a key where a colon follows
        self._last = ""

    def read(self, text: str) -> tuple[int, bool]:
        """Return how much of what comes next belongs to it, and whether it goes on."""
        at = 0
        while at < len(text):
            found = (_QUOTED if self._is_quoted else _PIECES).match(text, at)
            if found is None:  # half an escape waits for its other half
                return at, self._is_quoted
            if found[0] in "{[" and not self._is_quoted and self._ends_here():
                return at, False
            at = found.end()
            self._take(found[0])
            if self._depth <= 0:
                return at, False
        return at, True

    def _ends_here(self) -> bool:
        """Tell whether the bracket that comes next is not of it."""
        if self._last not in ",:[{":
            return True
        is_told = self._text in self._call_keys or (
            self._depth == 1 and self._text in self._outer_keys
        )
        return self._last == ":" and is_told

    def _take(self, piece: str) -> None:
        if piece == '"':
            self._is_quoted = not self._is_quoted
            self._text = "" if self._is_quoted else self._text
        elif self._is_quoted:
            self._text = (self._text + piece)[:_LONGEST_KEY]
            return
        self._depth += _STEPS.get(piece, 0)
        self._last = piece.strip()[-1:] or self._last
