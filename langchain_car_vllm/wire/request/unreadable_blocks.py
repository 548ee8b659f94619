"""Blocks that LangChain cannot read, before it reads them.

It is small because every model that is constructed brings it along.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage

_KINDS = ("image", "audio", "file")
# Where the former blocks of LangChain have their content, and where today's have it.
_CONTENT = {"base64": ("data", "base64"), "url": ("url", "url"), "id": ("id", "file_id")}


def mend_unreadable_blocks(messages: Sequence[BaseMessage]) -> list[BaseMessage] | None:
    """Return messages that LangChain can read, None where they are so already.

    LangChain (1.8) fails at former blocks that lack a part, looks for an address in a file with a
    text in it, and for the type of a picture that is given as base64, and fails at a picture that
    is nothing but a text. What a picture is its bytes tell later, and what has no content is
    refused or left out then.
    """
    mended = [
        message.model_copy(update={"content": [_plain(block) for block in message.content]})
        if isinstance(message.content, list) and any(map(_is_unreadable, message.content))
        else message
        for message in messages
    ]
    changed = any(new is not old for new, old in zip(mended, messages, strict=True))
    return mended if changed else None


def _is_former(block: Any) -> bool:
    """Whether a block is of LangChain's former shape, which says what kind of source it has."""
    return isinstance(block, dict) and block.get("type") in _KINDS and "source_type" in block


def _is_untyped_image(block: Any) -> bool:
    return (
        isinstance(block, dict)
        and block.get("type") == "image"
        and "base64" in block
        and not block.get("mime_type")
    )


def _is_row(block: Any) -> bool:
    """Whether a block is a row of somebody's table, with a `type` that is none of LangChain's."""
    if not isinstance(block, dict):
        return False
    kind = block.get("type")
    is_empty = not {"url", "base64", "file_id"} & block.keys()
    return not isinstance(kind, str | None) or (kind == "image" and "text" in block and is_empty)


def _is_unreadable(block: Any) -> bool:
    return _is_former(block) or _is_untyped_image(block) or _is_row(block)


def _plain(block: Any) -> Any:
    if _is_former(block):
        block = _in_todays_shape(block)
    if _is_row(block):
        return {"type": "json", "json": block}
    return {**block, "mime_type": "image/*"} if _is_untyped_image(block) else block


def _in_todays_shape(block: dict[str, Any]) -> dict[str, Any]:
    """Return a former block as LangChain would write it today, also where it lacks its content."""
    left = dict(block)
    source = left.pop("source_type")
    if source == "text" and {"text", "url"} & left.keys():
        return {"type": "text-plain", "text": left.get("text", left.get("url"))}
    before, now = _CONTENT.get(source, ("", "")) if isinstance(source, str) else ("", "")
    if before in left:
        left[now] = left.pop(before)
    return left
