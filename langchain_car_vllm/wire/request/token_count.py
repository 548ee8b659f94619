"""Counting tokens with the server's own tokenizer.

`/v1/messages/count_tokens` takes Anthropic's form and counts the texts without the chat template
(vllm-mlx 0.6.0), so it gives the least that a prompt has.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_car_vllm.wire.errors import PromptTooLongError

PATH = "/messages/count_tokens"
_SECONDS = 10.0


def count_request(
    model: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the arguments with which the SDK's client asks for the number of tokens.

    Args:
        model: The served model.
        messages: The conversation in the server's form.
        tools: The tools in the server's form.
    """
    body = {
        "model": model,
        "messages": [{"role": m["role"], "content": _texts(m)} for m in messages],
        "tools": [_tool(tool) for tool in tools],
    }
    return {"cast_to": object, "body": body, "options": {"timeout": _SECONDS}}


def read_count(answer: Any) -> int | None:
    """Return the number in an answer, None where there is none."""
    found = answer.get("input_tokens") if isinstance(answer, Mapping) else None
    return found if isinstance(found, int) else None


def may_overflow(body: Mapping[str, Any], limit: int | None) -> bool:
    """Whether a request might not fit: a token has at least one byte, so fewer bytes surely do."""
    if limit is None:
        return False
    texts = [text for message in body["messages"] for text in _flat(message)]
    texts.append(json.dumps(body.get("tools") or [], ensure_ascii=False))
    # Half a surrogate pair is measured here and refused where it is sent.
    return sum(len(text.encode(errors="surrogatepass")) for text in texts) > limit


def check_fits(tokens: int | None, limit: int | None) -> None:
    """Refuse a prompt that cannot fit.

    Raises:
        PromptTooLongError: It has more tokens than there may be.
    """
    if tokens is not None and limit is not None and tokens > limit:
        raise PromptTooLongError(tokens, limit)


def _texts(message: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in _flat(message)]


def _flat(message: Mapping[str, Any]) -> list[str]:
    """Return all texts of a message; media are not counted."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    texts.append(message.get("reasoning_content"))
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        texts += [function.get("name"), function.get("arguments")]
    return [text for text in texts if isinstance(text, str) and text]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function") or {}
    return {
        "name": function.get("name"),
        "description": function.get("description"),
        "input_schema": function.get("parameters"),
    }
