"""JSON of somebody else's: an object, or nothing that can be used; and a copy of it."""

import json
from collections.abc import Mapping
from typing import Any


def read_json_object(text: str | bytes | bytearray) -> dict[str, Any] | None:
    """Return the JSON object that a text holds, None for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def copy_json(value: Any) -> Any:
    """Return a JSON value whose objects and lists are nobody else's.

    Raises:
        RecursionError: It nests too deeply.
    """
    if isinstance(value, Mapping):
        return {name: copy_json(inner) for name, inner in value.items()}
    return [copy_json(inner) for inner in value] if isinstance(value, list | tuple) else value
