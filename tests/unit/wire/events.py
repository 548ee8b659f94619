"""Events of a stream as a server writes them."""

import json
from typing import Any

from fakes.reply import Reply


def stream(*events: Any, done: bool = True) -> Reply:
    """Return a reply that sends events as they are."""
    frames = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return Reply(raw=b"".join([*frames, b"data: [DONE]\n\n" if done else b""]))


def call_event(*calls: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """Return an event with parts of calls."""
    return {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": finish}]}


def part(name: str | None = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    """Return one part of a call."""
    return {**more, "function": {"name": name, "arguments": arguments}}
