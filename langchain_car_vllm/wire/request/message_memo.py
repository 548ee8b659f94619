"""Messages of text, each converted once: a conversation grows at its end, and its beginning stays.

An agent sends its whole history with every step. Converting it anew costs what grows with the
history (LangChain looks at every character of an answer), and all but the end comes out the same.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_car_vllm.support.printable import encodable
from langchain_car_vllm.support.process_state import ProcessLock

_MOST_CHARACTERS = 4 * 2**20
_PLAIN = (HumanMessage, SystemMessage, ToolMessage, AIMessage, AIMessageChunk)

Convert = Callable[[Sequence[BaseMessage]], list[dict[str, Any]]]


class MessageMemo:
    """What became of messages, for as long as there is room; any thread may ask.

    It goes by what a message says, not by the object: a message may be changed, and a checkpointer
    makes new objects of old ones.
    """

    def __init__(self) -> None:
        self._mutex = ProcessLock()
        self._kept: OrderedDict[Hashable, dict[str, Any]] = OrderedDict()
        self._characters = 0

    def convert(self, messages: Sequence[BaseMessage], convert: Convert) -> list[dict[str, Any]]:
        """Return the messages as `convert` makes them; the new ones alone are given to it.

        Args:
            messages: The conversation; where it holds anything but text all of it is converted.
            convert: Makes one of each, by what that one says alone.
        """
        keys = [_key_of(message) for message in messages]
        if not keys or None in keys:
            return convert(messages)
        with self._mutex:
            found = {key: self._kept.get(key) for key in keys}
        missing = {k: m for k, m in zip(keys, messages, strict=True) if found[k] is None}
        if missing:
            found |= zip(missing, convert(list(missing.values())), strict=True)
        self._keep(found)
        return [dict(found[key] or {}) for key in keys]

    def _keep(self, found: dict[Any, dict[str, Any] | None]) -> None:
        with self._mutex:
            for key, sent in found.items():
                if sent is not None and key not in self._kept:
                    self._kept[key] = sent
                    self._characters += _size(key)
                elif key in self._kept:
                    self._kept.move_to_end(key)
            while self._characters > _MOST_CHARACTERS:
                oldest, _ = self._kept.popitem(last=False)
                self._characters -= _size(oldest)


def _key_of(message: BaseMessage) -> tuple[Any, ...] | None:
    """Return all that decides what a message becomes, None where it is more than text."""
    kind = type(message)
    content = message.content
    if kind not in _PLAIN or not isinstance(content, str):
        return None
    if not content.isascii() and encodable(content) is not content:
        return None  # refused or mended, by where it stands
    beside = repr(message.additional_kwargs) if message.additional_kwargs else ""
    if isinstance(message, AIMessage):
        calls = message.tool_calls or message.invalid_tool_calls
        called = repr((message.tool_calls, message.invalid_tool_calls)) if calls else ""
        return kind, content, message.name, beside, called
    result_of = message.tool_call_id if isinstance(message, ToolMessage) else ""
    return kind, content, message.name, beside, result_of


def _size(key: Any) -> int:
    return sum(len(part) for part in key[1:] if part)
