"""Blocks that LangChain cannot read, before it reads them.

It is small because every model that is constructed brings it along.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage


def mend_unreadable_blocks(messages: Sequence[BaseMessage]) -> list[BaseMessage] | None:
    """Return messages that LangChain can read, None where they are so already.

    LangChain (1.8) looks for an address in a file with a text in it, and for the type of a picture
    that is given as base64, and fails without. What a picture is its bytes tell later.
    """
    mended = [
        message.model_copy(update={"content": [_plain(block) for block in message.content]})
        if isinstance(message.content, list) and any(map(_is_unreadable, message.content))
        else message
        for message in messages
    ]
    changed = any(new is not old for new, old in zip(mended, messages, strict=True))
    return mended if changed else None


def _is_text_file(block: Any) -> bool:
    return isinstance(block, dict) and block.get("source_type") == "text" and "text" in block


def _is_untyped_image(block: Any) -> bool:
    return (
        isinstance(block, dict)
        and block.get("type") == "image"
        and ("base64" in block or block.get("source_type") == "base64")
        and not block.get("mime_type")
    )


def _is_unreadable(block: Any) -> bool:
    return _is_text_file(block) or _is_untyped_image(block)


def _plain(block: Any) -> Any:
    if _is_untyped_image(block):
        return {**block, "mime_type": "image/*"}
    return {"type": "text-plain", "text": block["text"]} if _is_text_file(block) else block
