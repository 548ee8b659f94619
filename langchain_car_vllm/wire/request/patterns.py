r"""Regular expressions that both the grammar and the server can read.

The grammar (llguidance 1.9) has Rust's syntax without look-around, word borders and anchors in the
middle, and knows no letters beyond ASCII as `\w`; the server checks the whole answer with Python's
`re`. A pattern that either cannot read is weakened, or left out, and so is what they read
differently: the answer is checked against the original here. Digits stay those of ASCII, as JSON
Schema has them: a model that may write other signs in their place writes numerals.
"""

import re

_BACK_REFERENCE = re.compile(r"\(\?P=|\\[1-9]")
_CLASS = r"\[\^?\]?(?:[^\]\\]|\\.)*\]"
_PIECE = re.compile(
    rf"\\(?:x[0-9A-Fa-f]{{2}}|u[0-9A-Fa-f]{{4}}|.)|{_CLASS}|\(\?<?[=!]|\(|\)|.", re.DOTALL
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[?+]?")
_REPEAT = re.compile(r"\{(?=,?\d)(\d*)(?:(,)(\d*))?\}")
_GROUP = re.compile(r"\((?:\?:|\?P<[A-Za-z_]\w*>)?")
_ESCAPES = r"\\(?:[dDwWsStnrfv]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[ !-/:;=?@\[-`{-~])"
_ESCAPE = re.compile(rf"{_ESCAPES}\Z")
_IN_CLASS = re.compile(rf"{_ESCAPES}|[^\\]")
_SET_OPERATION = re.compile(r"\[|&&|--|~~")
_MOST_REPEATS = 1000
_BEYOND = "\\u0080-\U0010ffff"
# What stands in a class for what the two read differently, and in one that is negated.
_WIDER = {kind: kind + _BEYOND for kind in (r"\w", r"\W", r"\D")}
_NARROWER = {
    r"\w": "0-9A-Z_a-z",
    r"\W": r"\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f",
    r"\d": "0-9",
}


def weaken_pattern(pattern: str) -> str | None:
    """Return a pattern that grammar and server can read.

    All that fits the pattern fits what is returned: None, for any text, where that cannot be had.
    """
    left = _without_look_around(pattern)
    if left is None:
        return None
    written = _Writer().write(left)
    if not written:
        return None
    try:
        re.compile(written)
    except (re.error, OverflowError, RecursionError):
        return None
    return written


def _without_look_around(pattern: str) -> str | None:
    """Return a pattern without look-around and word borders: they only ever forbid."""
    if _BACK_REFERENCE.search(pattern):
        return None
    kept: list[str] = []
    open_groups: list[bool] = []  # whether each is part of what is left out
    place = 0
    while place < len(pattern):
        found = _PIECE.match(pattern, place)
        piece = found[0] if found else pattern[place]
        place += len(piece)
        left_out = any(open_groups) or piece in ("\\b", "\\B")
        if piece == ")":
            if not open_groups:
                return None
            if open_groups.pop() and not any(open_groups):
                quantifier = _QUANTIFIER.match(pattern, place)
                place = quantifier.end() if quantifier else place
        elif piece.startswith("("):
            open_groups.append(piece != "(" or any(open_groups))
            left_out = open_groups[-1]
        if not left_out:
            kept.append(piece)
    return "".join(kept) if not open_groups else None


class _Writer:
    """Writes a pattern in the syntax that Python and Rust share.

    Anchors may stand only where a match begins or ends. For each open group it is kept whether
    something stands before it, before the place within its branch, and whether a branch has ended.
    """

    def __init__(self) -> None:
        self._out: list[str] = []
        self._begun = [False]  # whether the branch has something that takes a character
        self._ended = [False]  # whether the branch has come to `$`
        self._any_ended = [False]  # whether any branch of the group has
        self._fixed = [False]  # whether the group has an anchor, and may not be repeated
        self._repeatable = False

    def write(self, pattern: str) -> str | None:
        """Return the pattern, None where it cannot be written."""
        place = 0
        while place < len(pattern):
            size = self._take(pattern, place)
            if size is None:
                return None
            place += size
        return "".join(self._out) if len(self._begun) == 1 else None

    def _take(self, pattern: str, place: int) -> int | None:
        """Write one piece and return its length, None for one that cannot be written."""
        sign = pattern[place]
        if sign in "()|":
            return self._take_group_sign(pattern, place)
        if sign == "^" or pattern.startswith("\\A", place):
            return self._anchor("^", 1 if sign == "^" else 2)
        if sign == "$" or pattern.startswith("\\Z", place):
            return self._anchor("$", 1 if sign == "$" else 2)
        if sign in "*+?" or _REPEAT.match(pattern, place):
            return self._quantifier(pattern, place)
        return self._atom(pattern, place)

    def _take_group_sign(self, pattern: str, place: int) -> int | None:
        if pattern[place] == "(":
            return self._open(pattern, place)
        if pattern[place] == ")":
            return self._close()
        self._begun[-1] = False if len(self._begun) == 1 else self._begun[-2]
        self._any_ended[-1] |= self._ended[-1]
        self._ended[-1] = self._repeatable = False
        self._out.append("|")
        return 1

    def _open(self, pattern: str, place: int) -> int | None:
        found = _GROUP.match(pattern, place)
        if found is None or pattern.startswith("?", found.end()) or self._ended[-1]:
            return None
        self._begun.append(self._begun[-1])
        for states in (self._ended, self._any_ended, self._fixed):
            states.append(False)
        self._repeatable = False
        self._out.append(found[0])
        return len(found[0])

    def _close(self) -> int | None:
        if len(self._begun) == 1:
            return None
        ended = self._any_ended.pop() or self._ended[-1]
        self._ended.pop()
        self._begun.pop()
        fixed = self._fixed.pop()
        self._begun[-1] = True
        self._ended[-1] |= ended
        self._fixed[-1] |= fixed
        self._repeatable = not fixed
        self._out.append(")")
        return 1

    def _anchor(self, sign: str, size: int) -> int | None:
        if sign == "^" and (self._begun[-1] or self._ended[-1]):
            return None
        if sign == "$":
            self._ended[-1] = True
        self._fixed[-1] = True
        self._repeatable = False
        self._out.append(sign)
        return size

    def _quantifier(self, pattern: str, place: int) -> int | None:
        if not self._repeatable:
            return None
        self._repeatable = False
        size = 1
        if pattern[place] == "{":
            found = _REPEAT.match(pattern, place)
            if found is None:
                return None
            if any(int(number) > _MOST_REPEATS for number in (found[1], found[3] or "") if number):
                return None
            self._out.append(f"{{{found[1] or 0}{found[2] or ''}{found[3] or ''}}}")
            size = len(found[0])
        else:
            self._out.append(pattern[place])
        if pattern.startswith("?", place + size):
            size += 1  # lazy or not, the same texts fit
        elif pattern.startswith("+", place + size):
            return None
        return size

    def _atom(self, pattern: str, place: int) -> int | None:
        found = _PIECE.match(pattern, place)
        if found is None or self._ended[-1]:
            return None
        piece = found[0]
        if piece.startswith("[") and len(piece) > 1:
            written = _class(piece[1:-1].removeprefix("^"), is_negated=piece[1] == "^")
            if written is None:
                return None
            piece = written
        elif piece.startswith("[") or (piece.startswith("\\") and not _ESCAPE.match(piece)):
            return None
        elif piece in "{}]":
            piece = f"\\{piece}"
        elif piece in _WIDER:
            piece = f"[{_WIDER[piece]}]"
        self._begun[-1] = self._repeatable = True
        self._out.append(piece)
        return len(found[0])


def _class(inner: str, *, is_negated: bool) -> str | None:
    """Return a class of characters, None for one that not both can read."""
    pieces = [found[0] for found in _IN_CLASS.finditer(inner)]
    if not inner or _SET_OPERATION.search(inner) or "".join(pieces) != inner:
        return None
    others = _NARROWER if is_negated else _WIDER
    written = "".join(others.get(piece, piece) for piece in pieces)
    return f"[^{written}]" if is_negated else f"[{written}]"
