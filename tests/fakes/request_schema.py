"""What vllm-mlx 0.6.0 refuses of a request's body before anything else. Stdlib only."""

import re
from typing import Any

TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def complaint_about(body: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Return where and why the request schema refuses a body, None where it does not."""
    if not isinstance(body.get("model"), str):
        return ["body", "model"], "Input should be a valid string"
    messages = body.get("messages")
    if not isinstance(messages, list):
        return ["body", "messages"], "Input should be a valid list"
    for place, message in enumerate(messages):
        if complaint := _message_complaint(message):
            return ["body", "messages", place, complaint[0]], complaint[1]
    if (most := body.get("max_tokens")) is not None and not (type(most) is int and most > 0):
        return ["body", "max_tokens"], "Input should be greater than 0"
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"):
        if body.get(name) is not None and not isinstance(body[name], int | float):
            return ["body", name], "Input should be a valid number"
    stop = body.get("stop")
    if stop is not None and not are_strings(stop):
        return ["body", "stop"], "Input should be a valid list"
    for place, tool in enumerate(body.get("tools") or []):
        name = (tool.get("function") or {}).get("name")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            text = "Value error, function.name must match ^[A-Za-z0-9_-]{1,64}$"
            return ["body", "tools", place], text
    budget = body.get("thinking_token_budget")
    if budget is not None and not (type(budget) is int and budget > 0):
        return ["body", "thinking_token_budget"], "Input should be greater than 0"
    return None


def _message_complaint(message: Any) -> tuple[str, str] | None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return "role", "Field required"
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            return "content", "Input should be a valid string"
        if not all(isinstance(part.get("type"), str) for part in content):
            return "content", "Field required"
    for name in ("reasoning_content", "tool_call_id"):
        if message.get(name) is not None and not isinstance(message[name], str):
            return name, "Input should be a valid string"
    calls = message.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    ):
        return "tool_calls", "Input should be a valid list"
    return None


def are_strings(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
