"""Tool calls put together from LangChain's chunks, and what of them is whole."""

import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages.content import InvalidToolCall
from langchain_core.messages.tool import (
    ToolCall,
    ToolCallChunk,
    invalid_tool_call,
    tool_call,
    tool_call_chunk,
)
from langchain_core.utils.json import parse_partial_json

from langchain_car_vllm.support.printable import encodable_value
from langchain_car_vllm.wire.answer.call_parts import is_no_arguments


class CallCollector:
    """Puts tool calls together from their parts."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[str | None, list[str], list[str]]] = {}

    def feed(self, chunks: Iterable[ToolCallChunk]) -> None:
        """Add the parts of one delta."""
        for chunk in chunks:
            id_, names, args = self._parts.get(chunk["index"] or 0, (None, [], []))
            names.append(chunk["name"] or "")
            args.append(chunk["args"] or "")
            self._parts[chunk["index"] or 0] = (id_ or chunk["id"], names, args)

    def chunks(self) -> list[ToolCallChunk]:
        """Return one part for each call: LangChain merges parts of two chunks, not of one."""
        return [
            tool_call_chunk(name="".join(names), args="".join(parts), id=id_, index=index)
            for index, (id_, names, parts) in self._parts.items()
        ]

    def spoils(self) -> tuple[ToolCallChunk, ...]:
        """Return what, behind arguments that were cut off, keeps them from being completed."""
        spoils = []
        for index, (_, _, parts) in self._parts.items():
            text = "".join(parts)
            if not _is_closed(text):
                end = next((e for e in _SPOILING if _object(text + e, whole=False) is None), "")
                spoils.append(tool_call_chunk(args=end, index=index))
        return tuple(spoils)

    def parse(self, *, whole: bool = False) -> tuple[list[ToolCall], list[InvalidToolCall]]:
        """Return the calls whose arguments are a JSON object, and the others.

        Args:
            whole: Whether an object without its end is none.
        """
        valid: list[ToolCall] = []
        invalid: list[InvalidToolCall] = []
        for id_, names, parts in self._parts.values():
            name, text = "".join(names), "".join(parts)
            args = _object(text, whole=whole)
            if name and args is not None:
                valid.append(tool_call(name=name, args=args, id=id_))
            else:
                error = "the arguments are not a JSON object"
                invalid.append(invalid_tool_call(name=name or None, args=text, id=id_, error=error))
        return valid, invalid


# Within an object, a list, a text or behind a back slash: one of these closes what is not open.
_SPOILING = ("", "]", "}", '"]', '"}', '""]', '""}')
_decode = json.JSONDecoder(strict=False).raw_decode


def _is_closed(text: str) -> bool:
    """Whether arguments have their end, whatever a server left behind it."""
    if is_no_arguments(text):
        return True
    try:
        _decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _object(text: str, *, whole: bool) -> dict[str, Any] | None:
    if is_no_arguments(text):
        return {}
    # The same lenient reading as LangChain's when it merges a stream, so both give the same call.
    try:
        found = encodable_value(
            json.loads(text, strict=False) if whole else parse_partial_json(text)
        )
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
