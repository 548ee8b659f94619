"""Which prompts the server has read, to tell how much of the next one is new to it."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from langchain_car_vllm.support.process_state import ProcessLock
from langchain_car_vllm.wire.request.token_count import measure_request, texts_of
from langchain_car_vllm.wire.request.tools import size_of_tools

_MOST_KEPT = 1024
_MOST_NEW = 16
_MARKUP = 8
"""Tokens that a chat template writes around a message, about."""


class ReadPrompts:
    """What one server was sent by this process; any thread may ask.

    A conversation goes by its length, its first message and its last one: a mistake costs nothing
    but a wait in the server instead of before it.
    """

    def __init__(self) -> None:
        self._mutex = ProcessLock()
        self._read: OrderedDict[Hashable, None] = OrderedDict()

    def note(self, body: Mapping[str, Any]) -> None:
        """Note that the server has read a request, and the system message that it began with."""
        messages = body["messages"]
        if not messages:
            return
        marks = [_mark(body, len(messages))]
        if messages[0]["role"] == "system":
            marks.append(_mark(body, 1))
        with self._mutex:
            for mark in marks:
                self._read[mark] = None
                self._read.move_to_end(mark)
            while len(self._read) > _MOST_KEPT:
                self._read.popitem(last=False)

    def tokens_to_read(self, body: Mapping[str, Any]) -> int:
        """Return how many tokens of a request the server has not read yet, about.

        Media wait for everybody else, whatever stands beside them: they count as all new.
        """
        whole, messages = measure_request(body), body["messages"]
        if whole.media_tokens:
            return whole.prompt_tokens
        known = next((n for n in _beginnings(messages) if self._is_known(body, n)), 0)
        new = {"messages": messages[known:], "tools": () if known else body.get("tools")}
        return measure_request(new).prompt_tokens + _MARKUP * (len(messages) - known)

    def _is_known(self, body: Mapping[str, Any], count: int) -> bool:
        with self._mutex:
            return _mark(body, count) in self._read


def _beginnings(messages: Sequence[object]) -> Iterator[int]:
    """Yield how many messages earlier turns may have had, the last turn first."""
    count = len(messages)
    yield from range(count - 1, max(count - _MOST_NEW, 0), -1)
    if count > _MOST_NEW:
        yield 1


def _mark(body: Mapping[str, Any], count: int) -> Hashable:
    """Return what tells the beginning of a conversation from others."""
    messages = body["messages"]
    first, last = messages[0], messages[count - 1]
    size = size_of_tools(body.get("tools") or ())
    return count, size, last["role"], hash((*texts_of(first), *texts_of(last)))
