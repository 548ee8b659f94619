"""What a served model says: a scripted `Reply`, and a script like a capable model. Stdlib only."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """What the model says, and how the server fails at it.

    Attributes:
        text: The answer.
        thought: The reasoning before it.
        calls: Tool calls, as name and arguments.
        finish: The reason to finish; by default `stop`, or `tool_calls` where there are calls.
        pieces: How the text is cut in a stream; by default into words.
        usage: Prompt and completion tokens.
        cached: Prompt tokens from the cache, where the server would tell.
        status: An HTTP status to answer instead, with `detail`.
        detail: What the failure says.
        frame: An error frame (code, message) after the events, as a failing stream sends it.
        break_after: Close the connection after so many events.
        endless: Leave out the finish reason and everything after it.
        pause: Seconds before each event after the first.
        gate: Wait for this before each event after the first.
        heartbeats: Comments before the first event.
        raw: Bytes to send as they are.
        one_index: Start every call at index 0, as some parsers do.
        call_in_parts: Send a call's arguments in pieces.
        likely: Log probabilities of the likeliest tokens, told of every token that is said.
        usage_on_finish: Whether the finish chunk carries usage as well.
    """

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finish: str | None = None
    pieces: list[str] | None = None
    usage: tuple[int, int] = (21, 3)
    cached: int | None = None
    status: int | None = None
    detail: Any = None
    frame: tuple[int, str] | None = None
    break_after: int | None = None
    endless: bool = False
    pause: float = 0.0
    gate: threading.Event | None = None
    heartbeats: int = 0
    raw: bytes | None = None
    one_index: bool = False
    call_in_parts: bool = True
    usage_on_finish: bool = True
    likely: dict[str, float] | None = None
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[dict[str, Any]], Reply]


def helpful(body: dict[str, Any]) -> Reply:
    """Answer like a capable model: calls a tool where it may, JSON where it must, else text."""
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema = form["json_schema"]["schema"]
        return Reply(text=json.dumps(example(schema, schema), ensure_ascii=False))
    if form.get("type") == "json_object":
        return Reply(text=json.dumps({"setup": "Why?", "punchline": "Because."}))
    last = body["messages"][-1]
    asked = re.search(r"Answer with one of (.+) and nothing else", str(last.get("content")))
    if asked and body.get("logprobs"):
        keys = asked[1].split(", ")
        return Reply(text=keys[0], likely={key: -0.5 - n for n, key in enumerate(keys)})
    tools = body.get("tools")
    if tools and body.get("tool_choice") != "none" and last["role"] != "tool":
        function = _chosen(body)["function"]
        schema = function.get("parameters") or {}
        return Reply(thought="a tool", calls=[(function["name"], example(schema, schema))])
    return Reply(text="Hello there, my friend", thought=_thought(body))


def _thought(body: dict[str, Any]) -> str:
    switch = (body.get("chat_template_kwargs") or {}).get("enable_thinking")
    return "" if switch is False else "let me think"


def _chosen(body: dict[str, Any]) -> dict[str, Any]:
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        return next(tool for tool in body["tools"] if tool["function"]["name"] == name)
    return body["tools"][0]


def example(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Return a value that fits a JSON schema."""
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return example(found, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            options = [o for o in schema[word] if o.get("type") != "null"]
            return example(options[0], root)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        needed = schema.get("required", list(schema.get("properties", {})))
        properties = schema.get("properties", {})
        return {name: example(properties.get(name, {}), root) for name in needed}
    if kind == "array" and schema.get("prefixItems"):
        return [example(part, root) for part in schema["prefixItems"]]
    if kind == "array":
        return [example(schema.get("items", {}), root)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", 3)
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _text(schema)


def _text(schema: dict[str, Any]) -> str:
    forms = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "uuid": "0" * 32}
    if found := forms.get(schema.get("format", "")):
        return found
    return "你好啊こんにちは"
