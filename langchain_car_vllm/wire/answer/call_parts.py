"""Parts of tool calls, from a server's events to LangChain's chunks.

Servers differ: every call at index 0, no index or one that is a text, no id or one for all of them,
the name again in each part, arguments as an object, and many ways to say that there are none.
"""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from pydantic_core import from_json

from langchain_car_vllm.wire.answer.waiting_text import WaitingText
from langchain_car_vllm.wire.errors import ServerFailedError

_EMPTY = ("", "null", "none", "[]", "{}")
_NO_OBJECT = ('"', "[")
_BEGINNING = 100
_MARKS = re.compile(r'\\.?|["\[\]{}]', re.DOTALL)
_DEPTHS = {"[": 1, "{": 1, "]": -1, "}": -1}
_EMPTY_BEGUN = tuple(text[:length] for text in _EMPTY for length in range(len(text) + 1))


def new_call_id() -> str:
    """Return an identifier for a call that the server gave none."""
    return f"call_{uuid.uuid4().hex[:24]}"


def whole_calls(
    calls: Iterable[tuple[str, Mapping[str, Any]]], first: int = 0
) -> list[ToolCallChunk]:
    """Return the chunks of calls that were written as text: one each.

    Args:
        calls: Names and arguments.
        first: The number of the first one.
    """
    return [
        tool_call_chunk(
            name=name,
            args=json.dumps(arguments, ensure_ascii=False),
            id=new_call_id(),
            index=index,
        )
        for index, (name, arguments) in enumerate(calls, first)
    ]


def is_no_arguments(text: str) -> bool:
    """Whether a text says that a call has no arguments: nothing, null, None or an empty list.

    It may say so as JSON, and in a text of JSON.
    """
    bare = text.strip()
    if bare.lower() in _EMPTY:
        return True
    value = _json_in(bare)
    return is_no_arguments(value) if isinstance(value, str) else value == []


def plain_arguments(text: str) -> str:
    """Return arguments as they are meant: nothing is an empty object, JSON in a text is JSON."""
    if is_no_arguments(text):
        return "{}"
    value = _json_in(text)
    plain = plain_arguments(value) if isinstance(value, str) else text
    return plain if plain.lstrip().startswith("{") else text


def _json_in(text: str) -> Any:
    """Return a text or a list of JSON, None for anything else."""
    if not text.lstrip().startswith(_NO_OBJECT):
        return None
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


class _Nesting:
    """Follows JSON that comes in parts, to tell where it may have its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = False
        self._escape = ""

    def feed(self, part: str) -> None:
        """Follow one more part."""
        marks = _MARKS.findall(self._escape + part)
        self._escape = "\\" if marks[-1:] == ["\\"] else ""
        for mark in marks:
            if mark == '"':
                self._is_text = not self._is_text
            elif not self._is_text:
                self._depth += _DEPTHS.get(mark, 0)

    @property
    def is_closed(self) -> bool:
        """Whether no text, list or object is open."""
        return self._depth <= 0 and not self._is_text


@dataclass
class _Call:
    """One call as far as it is known.

    Attributes:
        index: Its number.
        id: The server's name for it.
        name: The tool's name as the server sends it.
        told: How much of that has gone out, under the name that the user gave.
        arguments: The parts of its arguments.
        held: Arguments that wait because they may be none, None once some went out.
        nesting: What is open in the arguments.
        is_named_again: Whether the name came once more with nothing behind it: of this call, which
            was whole by then, or of another one of the tool, if arguments follow.
    """

    index: int
    id: str | None
    name: str = ""
    told: int = 0
    arguments: list[str] = field(default_factory=list)
    held: WaitingText | None = field(default_factory=WaitingText)
    nesting: _Nesting = field(default_factory=_Nesting)
    is_named_again: bool = False

    def add(self, text: str) -> None:
        """Add a part of the arguments."""
        self.arguments.append(text)
        self.nesting.feed(text)

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are JSON."""
        return self.nesting.is_closed and _is_json("".join(self.arguments))

    @property
    def is_begun(self) -> bool:
        """Whether the arguments begin as JSON does, so that the rest of it may follow."""
        return _is_begun("".join(self.arguments[:_BEGINNING]))


class CallReader:
    """Turns the `tool_calls` of events into chunks: each call gets a number and an id.

    Args:
        names: The user's names of tools that went out under another one, by that one.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._names = names or {}
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def read(self, parts: Any) -> tuple[ToolCallChunk, ...]:
        """Return the chunks for what one event holds.

        Raises:
            AttributeError: It is not a list of calls.
            TypeError: It is not a list of calls.
        """
        if isinstance(parts, Mapping):  # a single call, in OpenAI's former shape without more
            parts = [parts if "function" in parts else {"function": parts}]
        chunks: list[ToolCallChunk] = []
        for place, part in enumerate(parts):
            function = part.get("function") or {}
            name, id_ = _text(function.get("name")), _id_of(part)
            given = _argument_text(function.get("arguments"))
            if not (name or id_ or given):
                continue
            call, sent_id = self._call(part, place, name, given)
            if name:  # it comes in pieces, or again
                call.name += name.removeprefix(call.name)
            args = self._arguments(call, given)
            more = self._name(call, is_whole=bool(call.arguments))
            chunks.append(tool_call_chunk(name=more, args=args, id=sent_id, index=call.index))
        return tuple(chunks)

    def _call(
        self, part: Mapping[str, Any], place: int, name: str | None, given: str | None
    ) -> tuple[_Call, str | None]:
        """Return the call that a part is of, and its id where that is told for the first time."""
        index, id_ = _index_of(part), _id_of(part)
        at = place if index is None else index
        call = self._at.get(at)
        if id_ and (index is None if call is None else call.id != id_):
            call = self._by_id.get(id_, call)
        sent_id: str | None = None  # LangChain would join what is told again
        if call is None or _begins_another(call, name, id_, given):
            is_unnamed = call is not None and call.is_named_again and not name
            call = _Call(len(self._calls), id_, call.name if call and is_unnamed else "")
            self._calls.append(call)
            sent_id = new_call_id() if id_ is None or id_ in self._by_id else id_
        elif name == call.name and not given:
            call.is_named_again = call.is_named_again or call.is_whole
        self._at[at] = call
        if id_:
            self._by_id[id_] = call
        return call, sent_id

    def end(self) -> tuple[ToolCallChunk, ...]:
        """Return the arguments that were held back because they may have been none.

        Raises:
            ServerFailedError: A call has no name.
        """
        chunks = []
        for call in self._calls:
            if not call.name:
                raise ServerFailedError("the server sent a tool call without a name")
            name = self._name(call, is_whole=True)
            held, call.held = call.held.text if call.held else "", None
            if name or held:
                args = plain_arguments(held) if held else None
                chunks.append(tool_call_chunk(name=name, args=args, index=call.index))
        return tuple(chunks)

    def _name(self, call: _Call, *, is_whole: bool) -> str | None:
        """Return what can be told by now of a call's name: of an alias nothing before all of it."""
        more = call.name[call.told :]
        if not call.told and call.name in self._names:
            more = self._names[call.name]
        elif not (call.told or is_whole) and any(n.startswith(call.name) for n in self._names):
            return None
        call.told = len(call.name)
        return more or None

    def _arguments(self, call: _Call, text: str | None) -> str | None:
        """Return what is certain of a part's arguments.

        What may say "no arguments" waits for the end: in the middle of an object `null` is a value.
        So does what begins as no object, and may hold one.
        """
        if not text:
            return text
        call.add(text)
        if call.held is None:
            return text
        if not call.held.add(text):
            return ""
        text = call.held.text
        bare = text.strip().lower()
        if bare.startswith(_NO_OBJECT) or (bare in _EMPTY_BEGUN and bare[:1] != "{"):
            call.held.keep(text)
            return ""
        call.held = None
        return text


def _begins_another(call: _Call, name: str | None, id_: str | None, given: str | None) -> bool:
    """Whether a part is of another call than the one at its index."""
    if not call.name or not (name or (call.is_named_again and given)):
        return False
    if id_ and call.id and id_ != call.id:
        return True
    if id_ and call.id:  # some have one id for all calls, others send a call once more
        is_other = name not in (None, call.name)
        return call.is_whole and (is_other or given not in (None, "".join(call.arguments)))
    if name == call.name and not given:
        return False
    if not call.arguments or call.is_whole:
        return bool(call.arguments)
    return name != call.name and not call.is_begun


def _index_of(part: Mapping[str, Any]) -> int | None:
    """Return a part's index, also where it is a text; None for none."""
    try:
        return int(part["index"])
    except (KeyError, OverflowError, TypeError, ValueError):
        return None


def _id_of(part: Mapping[str, Any]) -> str | None:
    """Return a call's id, also where it is a number."""
    return None if part.get("id") in (None, "") else str(part["id"])


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _is_begun(text: str) -> bool:
    """Whether a text is the beginning of JSON, so that the rest of it may follow."""
    try:
        from_json(text, allow_partial=True)
    except ValueError:
        return False
    return True


def _argument_text(given: Any) -> str | None:
    return _text(json.dumps(given) if isinstance(given, Mapping | list) else given)


def _text(given: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise TypeError("not a text")
    return given or None
