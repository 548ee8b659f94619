"""Which headers can be sent; the HTTP library would tell their values in its errors."""

import re
from collections.abc import Mapping
from typing import Any

from langchain_car_vllm.errors import ConfigurationError

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")
_HINT = "headers must be printable ASCII, without line breaks and without spaces at their ends"

# They say where a request ends, or what becomes of its connection.
_FRAMING = frozenset(
    ("content-length", "transfer-encoding", "connection", "upgrade", "expect", "te", "trailer")
)


def check_headers(setting: str, headers: Mapping[Any, Any]) -> None:
    """Refuse headers that cannot be sent, and show none of their values.

    Raises:
        ConfigurationError: A name or a value is not one.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(f"`{setting}` contains a name that no header can have")
        if name.lower() in _FRAMING:
            raise ConfigurationError(
                f"`{setting}` cannot set `{name}`, which belongs to the connection",
                hint="leave it out",
            )
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigurationError(
                f"`{setting}` contains a value for `{name}` that no header can have", hint=_HINT
            )


def check_key(key: str, setting: str = "`api_key`") -> None:
    """Refuse a key that no header can hold, and do not show it.

    Args:
        key: What was given.
        setting: Where it was given.

    Raises:
        ConfigurationError: It is one.
    """
    if not _VALUE.fullmatch(key):
        raise ConfigurationError(f"{setting} contains characters that no key can have", hint=_HINT)
