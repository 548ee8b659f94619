"""Text of servers, models and files, made fit for a terminal and a log."""

import re
from collections.abc import Sequence

_MOST_CHARACTERS = 2000
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#@'\"`]+@")


def printable(text: str) -> str:
    """Return text of a server, a model or a file as a terminal can show it without harm.

    Control characters, which could rewrite the screen or the clipboard, are written as escapes.
    """
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def to_sentence(text: str) -> str:
    """Return a message: printable, of bounded length, without a user and password in addresses."""
    text = _CREDENTIALS.sub("***@", printable(text))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def alternatives(names: Sequence[str]) -> str:
    """Return names as one of which is meant, such as "`a`, `b` or `c`"."""
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def format_value(value: object, most: int = 100) -> str:
    """Return a value as Python writes it, cut off where it is long."""
    try:
        return repr(value)[:most]
    except ValueError:  # of an integer of more than some thousand digits
        return "a number of thousands of digits"
