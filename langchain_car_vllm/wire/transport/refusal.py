"""What a server sends in the place of an answer, and when it is worth asking again."""

import json
import math
import re
import time
from collections.abc import Iterable
from email.message import Message
from typing import Any

_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 8.0
_REFUSED = (429, 503)


class Refusal(Exception):  # noqa: N818 - it says what a server did, and is told as an error of ours
    """A response that does not answer the request.

    Args:
        status: The HTTP status.
        headers: Names, in whatever letters, and values.
        content: The body, as far as it came.

    Attributes:
        text: The body as text.
        body: What is said in it: what JSON has under `error`, other JSON, or the text.
        location: Where a redirect leads, None for nowhere.
        retry_after: Seconds after which the server wants to be asked again, 0 where it names none.
    """

    def __init__(
        self, status: int, headers: Iterable[tuple[bytes, bytes]] = (), content: bytes = b""
    ) -> None:
        super().__init__(f"the server answered {status}")
        told = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in headers}
        self.status = status
        self.text = _decode(content, told.get("content-type", ""))
        self.body = _body(content, self.text)
        self.location = told.get("location")
        self.retry_after = _seconds(told.get("retry-after", "0"))

    @property
    def words(self) -> str:
        """The server's own words: FastAPI's `detail`, or OpenAI's `message`."""
        body = self.body
        if isinstance(body, dict):
            body = body.get("detail", body.get("message", body))
        if isinstance(body, list):
            return "; ".join(_complaint(entry) for entry in body)
        if isinstance(body, dict):
            return str(body.get("message") or body.get("error") or body)
        return _plain(str(body or self.text))


class Refusals:
    """Counts how often the server refused before it began to work, the one thing worth repeating.

    A repeated 500 or 504 would only repeat work, or add to what the server is still doing.

    Args:
        most: How many refusals to bear.
        deadline: Monotonic seconds until which a repetition has a sense, None for no limit.
    """

    def __init__(self, most: int, deadline: float | None = None) -> None:
        self._left = most
        self._deadline = math.inf if deadline is None else deadline
        self._pause = _FIRST_WAIT_SECONDS

    def wait(self, error: Refusal) -> float:
        """Return the seconds to wait before the next try, or raise `error`."""
        if error.status not in _REFUSED or self._left <= 0:
            raise error
        self._left -= 1
        pause, self._pause = self._pause, self._pause * 2
        seconds = min(max(error.retry_after, pause), _LONGEST_WAIT_SECONDS)
        if time.monotonic() + seconds > self._deadline:
            raise error
        return seconds


def _decode(content: bytes, content_type: str) -> str:
    """Return a text; what a server calls its character set may be none, or not what it wrote."""
    described = Message()
    described["content-type"] = content_type
    try:
        return content.decode(described.get_content_charset("utf-8"), "replace")
    except (LookupError, UnicodeError, ValueError):
        return content.decode("utf-8", "replace")


def _body(content: bytes, text: str) -> Any:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return text
    return body.get("error", body) if isinstance(body, dict) else body


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:  # a date, or nonsense
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _plain(text: str) -> str:
    """Return a text, only the title of a web page."""
    if not re.match(r"\s*<(!doctype|html|head)", text, re.IGNORECASE):
        return text
    title = re.search(r"<title[^<>]*>([^<]*)", text, re.IGNORECASE)
    return f"a web page: {' '.join(title[1].split())}" if title else "a web page"


def _complaint(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    parts = entry.get("loc")
    place = ".".join(str(p) for p in parts if p != "body") if isinstance(parts, list) else ""
    return f"{place}: {entry.get('msg')}" if place else str(entry.get("msg"))
