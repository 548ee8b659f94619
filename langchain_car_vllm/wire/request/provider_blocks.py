"""Blocks of other providers' own APIs, in the shapes that are known here.

Bedrock and Gemini name what a block holds by its only key, where others have a `type`.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.tool import ToolCall

# Blocks that are calls, and what their arguments are called there.
_CALLS = (
    *("tool_use", "tool_call", "function_call", "custom_tool_call"),
    *("tool_call_chunk", "invalid_tool_call"),
)
_ARGUMENTS = ("input", "args", "arguments")
_RAW_CALLS = ("toolUse", "functionCall", "function_call")
_RAW_RESULTS = ("toolResult", "functionResponse", "function_response")
# What another model's provider needs back, and nobody can read.
_SEALED = ("redacted_thinking", "reasoningContent", "function_call_signature", "cachePoint")
_DOCUMENTS = {"txt": "text/plain", "md": "text/markdown", "csv": "text/csv", "html": "text/html"}
_MEDIA = ("image", "audio", "video", "document")


def plain_block(block: Any) -> Any:
    """Return a block of a message in a shape that is known here, or as it is."""
    if not isinstance(block, Mapping):
        return block
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        return plain_block(block["value"])  # as LangChain packs what it does not know
    name, inner = _only(block)
    if name in _RAW_CALLS:
        given = {key: inner[key] for key in _ARGUMENTS if key in inner}
        return {"type": "tool_use", "id": _id_of(inner), "name": inner.get("name"), **given}
    if name in _RAW_RESULTS:
        given = inner.get("content", inner.get("response", {**inner}))
        return {"type": "tool_result", "tool_use_id": _id_of(inner), "content": given}
    if name == "reasoningContent" and (text := inner.get("reasoningText")):
        return {"type": "thinking", "thinking": [text]}
    return {"type": name} if name in _SEALED else plain_medium(block)


def plain_medium(block: Any) -> Any:
    """Return a picture, a sound, a film or a file in a shape that is known here, or as it is."""
    name, inner = _only(block)
    if name in ("inlineData", "inline_data", "fileData", "file_data"):
        kind = inner.get("mimeType", inner.get("mime_type"))
        data = {"data": inner["data"]} if "data" in inner else {}
        url = inner.get("fileUri", inner.get("file_uri"))
        return {"type": "media", "mime_type": kind, **data, **({"url": url} if url else {})}
    source = inner.get("source")
    if name not in _MEDIA or not isinstance(source, Mapping):
        return block
    form, called = str(inner.get("format")), {"name": inner["name"]} if "name" in inner else {}
    if isinstance(text := source.get("text"), str):
        return {"type": "document", "source": {"type": "text", "data": text}, **called}
    if "bytes" not in source:
        return block
    if name == "document":
        mime_type = _DOCUMENTS.get(form, f"application/{form}")
        return {"type": "file", "mime_type": mime_type, "base64": source["bytes"], **called}
    return {"type": name, "base64": source["bytes"]}


def is_call(block: Any) -> bool:
    """Whether a block is a call of a tool, which LangChain keeps beside the content as well."""
    return isinstance(block, Mapping) and block.get("type") in _CALLS


def is_sealed(block: Any) -> bool:
    """Whether a block holds nothing that a model could read."""
    return isinstance(block, Mapping) and block.get("type") in _SEALED


def is_leftover(block: Any) -> bool:
    """Whether a block is what streams leave behind: a part of a call, or nothing but its place."""
    if not isinstance(block, Mapping):
        return False
    return block.get("type") == "input_json_delta" or not block.keys() - {"index", "id"}


def written_calls(message: AIMessage) -> list[ToolCall]:
    """Return calls that LangChain does not know of.

    They are in OpenAI's former shape, whose result comes as a `FunctionMessage`, or stand in the
    content alone, in the shape of Anthropic's, LangChain's or OpenAI's blocks.
    """
    former = message.additional_kwargs.get("function_call")
    if isinstance(former, dict):
        return _call_of(former.get("name"), former.get("arguments") or "{}", former.get("name"))
    if message.invalid_tool_calls or isinstance(message.content, str):
        return []
    return [call for block in message.content for call in call_in(block)]


def call_in(block: Any) -> list[ToolCall]:
    """Return the call of a block, nothing for one that is none or lacks a part."""
    if not is_call(block):
        return []
    args = next((block[name] for name in _ARGUMENTS if name in block), None)
    return _call_of(block.get("name"), args, block.get("call_id") or block.get("id"))


def _call_of(name: Any, args: Any, call_id: Any) -> list[ToolCall]:
    """Return a call, nothing for what is none."""
    if isinstance(args, str):
        with suppress(ValueError, RecursionError):
            args = json.loads(args)
    if not isinstance(name, str) or not isinstance(args, dict):
        return []
    return [ToolCall(name=name, args=args, id=call_id)]


def _only(block: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the only key of a block without a type and what is in it, else nothing."""
    if isinstance(block, Mapping) and len(block) == 1:
        ((name, inner),) = block.items()
        if isinstance(name, str) and isinstance(inner, Mapping):
            return name, inner
    return "", {}


def _id_of(inner: Mapping[str, Any]) -> Any:
    """Return what a call is known by: Gemini's have a name alone."""
    return inner.get("toolUseId") or inner.get("id") or inner.get("name")
