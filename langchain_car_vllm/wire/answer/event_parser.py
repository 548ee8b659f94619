"""The JSON of events, whose texts may be cut within a character.

JSON writes a character beyond the first 65,536, such as an emoji, as a pair of surrogates. A server
that counts in these may end an event between the two.
"""

import json
from collections.abc import Hashable, Mapping
from typing import Any

from pydantic_core import from_json

from langchain_car_vllm.support.printable import encodable, encodable_value

_THOUGHTS = ("reasoning_content", "reasoning")
_FIRST_HALVES = ("\ud800", "\udbff")


class EventParser:
    """Reads the events of one answer."""

    def __init__(self) -> None:
        self._halves: dict[Hashable, str] = {}

    def parse(self, payload: bytes) -> Any:
        """Return the JSON value of an event.

        pydantic's parser takes half the time of Python's, a twentieth of a whole stream, and
        refuses halves of surrogate pairs, which no request can send back. So pairs are joined, and
        what stays a half is replaced.

        Raises:
            ValueError: It is not JSON.
            RecursionError: It nests too deeply.
        """
        try:
            event = from_json(payload)
        except ValueError:
            event = json.loads(payload.decode())
        else:
            if not self._halves:
                return event
        self._join(event)
        return encodable_value(event)

    def end(self) -> tuple[str, str]:
        """Return what is left of the text and of the reasoning: halves without another."""
        text = self._halves.pop("content", "")
        thought = "".join(self._halves.pop(name, "") for name in _THOUGHTS)
        return encodable(text), encodable(thought)

    def _join(self, event: Any) -> None:
        """Put halves that were held back before what follows them, and hold back new ones."""
        for choice in _list_in(event, "choices"):
            if isinstance(choice, dict) and choice.get("index"):
                continue  # of another answer, which nobody reads
            for said in (_dict_in(choice, "delta"), _dict_in(choice, "message")):
                for name in ("content", *_THOUGHTS):
                    self._join_text(said, name, name)
                for place, call in enumerate(_list_in(said, "tool_calls")):
                    number = call.get("index", place) if isinstance(call, dict) else place
                    self._join_text(_dict_in(call, "function"), "arguments", str(number))

    def _join_text(self, holder: dict[str, Any], name: str, key: Hashable) -> None:
        text = holder.get(name)
        if not isinstance(text, str) or not text:
            return
        text = self._halves.pop(key, "") + text
        if _FIRST_HALVES[0] <= text[-1] <= _FIRST_HALVES[1]:
            text, self._halves[key] = text[:-1], text[-1]
        holder[name] = text


def _dict_in(value: Any, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, dict) else {}


def _list_in(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []
