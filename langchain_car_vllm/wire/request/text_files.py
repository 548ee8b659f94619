"""Files with a text in them, as plain texts, before LangChain reads them.

It is small because every model that is constructed brings it along.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage


def mend_text_files(messages: Sequence[BaseMessage]) -> list[BaseMessage] | None:
    """Return messages whose files with a text in them are plain texts, None where there are none.

    LangChain (1.8) looks for an address in such a block and fails without one.
    """
    mended = [
        message.model_copy(update={"content": [_plain(block) for block in message.content]})
        if isinstance(message.content, list) and any(map(_is_text_file, message.content))
        else message
        for message in messages
    ]
    changed = any(new is not old for new, old in zip(mended, messages, strict=True))
    return mended if changed else None


def _is_text_file(block: Any) -> bool:
    return isinstance(block, dict) and block.get("source_type") == "text" and "text" in block


def _plain(block: Any) -> Any:
    return {"type": "text-plain", "text": block["text"]} if _is_text_file(block) else block
