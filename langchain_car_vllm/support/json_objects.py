"""JSON of somebody else's: an object, or nothing that can be used."""

import json
from typing import Any


def read_json_object(text: str | bytes | bytearray) -> dict[str, Any] | None:
    """Return the JSON object that a text holds, None for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
