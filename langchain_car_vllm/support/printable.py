"""Text of servers, models and files, made fit for a terminal, a log and a request."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_car_vllm.support.secret_names import without_users

_MOST_CHARACTERS = 2000
_MOST_OF_A_VALUE = 100
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return text of a server, a model or a file as a terminal can show it without harm.

    Control characters, which could rewrite the screen or the clipboard, are written as escapes, and
    so is what nothing can encode.
    """
    return _CONTROLS.sub(_escape, text)


def on_one_line(text: object) -> str:
    """Return a text of somebody else's as one line, which every terminal and every log takes."""
    characters = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in characters)


def printable_answer(text: str) -> str:
    """Return what a model wrote as a terminal can show it: without commands, else as it is."""
    return _COMMANDS.sub(_escape, text.replace("\r", ""))


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number <= 0xFF else f"\\u{number:04x}"  # noqa: PLR2004


def encodable(text: str) -> str:
    """Return text that UTF-8 has bytes for: surrogate pairs are joined, halves of them replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def encodable_value(value: Any) -> Any:
    """Return a JSON value all of whose texts are encodable: nearly always as it is.

    Raises:
        RecursionError: It is not, and nests too deeply.
    """
    return value if all(map(_is_encodable, _texts_in(value))) else _encodable_copy(value)


def _is_encodable(text: str) -> bool:
    return text.isascii() or encodable(text) is text


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the texts of a JSON value, however deeply it nests, also one that holds itself."""
    level, seen = [value], set()
    while level:
        inner = level.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, list | dict) and id(inner) not in seen:
            seen.add(id(inner))
            level += [*inner, *inner.values()] if isinstance(inner, dict) else inner


def _encodable_copy(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_encodable_copy(inner) for inner in value]
    if isinstance(value, dict):
        return {encodable(name): _encodable_copy(inner) for name, inner in value.items()}
    return value


def to_sentence(text: str) -> str:
    """Return a message: printable, of bounded length, without a user and password in addresses."""
    text = without_users(printable(text))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def alternatives(names: Sequence[str]) -> str:
    """Return names as one of which is meant, such as "`a`, `b` or `c`"."""
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def format_value(value: object) -> str:
    """Return a value as Python writes it, cut off where it is long."""
    try:
        return repr(value)[:_MOST_OF_A_VALUE]
    except ValueError:  # of an integer of more than some thousand digits
        return "a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
