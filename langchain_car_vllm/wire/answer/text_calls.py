"""Tool calls that come as text: held back until it is clear what they are.

Models write calls in forms that the server's parser does not know, or knows only where the answer
is not streamed: a JSON object, a JSON code block, a tag without an end. Text that begins
like one is held back. JSON that names a bound tool becomes the call; anything else is let go as
the text it is, at the first sign that it is not a call.
"""

import re
from collections.abc import Iterator

from langchain_core.messages.tool import ToolCallChunk

from langchain_car_vllm.support.printable import encodable
from langchain_car_vllm.wire.answer.call_parts import whole_calls
from langchain_car_vllm.wire.answer.other_json import OtherJson
from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.waiting_text import WaitingText
from langchain_car_vllm.wire.answer.written_calls import (
    FENCE,
    JSON_TEXT,
    MARK,
    STEP_KEYS,
    TAGS,
    WRAPPERS,
    CallNames,
    any_of,
    begins_object,
    brackets_of,
    may_be_call,
    read_calls,
    read_json,
    without_ends,
)

# A look behind keeps long blanks from being looked through once for each of their characters, and
# the most marks that a call has before it keep rows of them from that.
_START = re.compile(
    rf"(?<!\s)\s*(?=[{{\[]|{any_of(TAGS)}|`{{3}}|`{{1,2}}\s*(?:[{{\[]|\Z)){MARK}{{0,8}}"
)
_BEGUN = {mark[:size] for mark in TAGS for size in range(1, len(mark))}
_PARTIAL = re.compile(rf"(?<!\s)\s*(?:{any_of(_BEGUN)})?\Z")
_FENCE = re.compile(FENCE)
_CALL_LANGUAGES = ("", "json", "tool_call", "tool_code", "tool")


class TextCallFilter(Filter):
    """Turns calls written as text into tool calls.

    Where the server's own parser finds calls, what is written beside them is text, whichever comes
    first. So all that follows a written call waits for the end of the answer.

    Args:
        names: What counts as a call.
    """

    def __init__(self, names: CallNames) -> None:
        self._names = names
        self._waiting = WaitingText()
        self._held = ""  # what is looked through now
        self._code: re.Pattern[str] | None = None  # its end
        self._json: OtherJson | None = None
        self._is_written = False
        self._is_native = False
        self._is_after_call = False
        self._is_cut = False
        self._calls = 0

    @property
    def withheld(self) -> str:
        """The text that was not let go."""
        return self._waiting.text

    def feed(self, delta: Delta) -> Delta | None:
        """Return what is surely no call that is written as text."""
        self._is_native = self._is_native or bool(delta.calls)
        is_enough = self._waiting.add(delta.text)
        if not self._is_native and (self._is_written or not is_enough):
            return Delta(thought=delta.thought) if delta.thought else None
        self._held = self._waiting.text
        if self._is_native:
            text, self._held = self._held, ""
        else:
            text = self._release()
        self._waiting.keep(self._held)
        if not (text or delta.thought or delta.calls):
            return None
        return Delta(text, delta.thought, delta.calls)

    def end(self, finish_reason: str | None) -> Iterator[Delta]:
        """Yield what was held back, as the calls or as the text it is."""
        self._is_cut = finish_reason == "length"
        self._held = self._waiting.text
        self._waiting.keep()
        while self._held:
            text, calls, _ = self._step(last=True)
            if text or calls:
                yield Delta(text, calls=tuple(calls))

    def _release(self) -> str:
        texts: list[str] = []
        waiting = False
        while self._held and not waiting:
            text, _, waiting = self._step(last=False)
            texts.append(text)
        return "".join(texts)

    def _step(self, *, last: bool) -> tuple[str, list[ToolCallChunk], bool]:
        """Take one piece off what is held.

        Returns:
            Text to let go, calls to let go, and whether the rest must wait for more.
        """
        if self._is_after_call:
            self._is_after_call = False
            self._held = without_ends(self._held)
        if self._code or self._json:
            return self._inside(last=last)
        found = _START.search(self._held)
        if found is None:
            cut = len(self._held) if last else _partial_start(self._held)
            text, self._held = self._held[:cut], self._held[cut:]
            return text, [], True
        if found.start() > 0:
            return self._let_go(found.start())
        rest = self._held[found.end() :]
        if not last and (not rest or rest in _BEGUN):
            return "", [], True
        may_hold = found["tag"] or (found["language"] or "").lower() in _CALL_LANGUAGES
        if rest.startswith(("{", "[")) and may_hold:
            return self._value(found, rest, last=last)
        return self._pass_over(found, "")

    def _value(
        self, opening: re.Match[str], rest: str, *, last: bool
    ) -> tuple[str, list[ToolCallChunk], bool]:
        """Take JSON off that stands behind marks, or behind none."""
        if not (opening["tag"] or may_be_call(rest)):
            return self._pass_over(opening, rest)
        found = read_json(rest, last=last, is_cut=self._is_cut)
        if found is None and not last:
            if not _has_ended(opening, rest):
                return "", [], True
            found = read_json(rest, last=True)
        value, size = found or (None, len(rest))
        calls, said = read_calls(value, self._names, in_code=bool(opening["line"]))
        if calls and not last:
            self._is_written = True
            return "", [], True
        if calls:
            chunks = whole_calls(calls, self._calls)
            self._calls += len(chunks)
            self._held = rest[size:]
            self._is_after_call = True
            return encodable(said), chunks, False
        if opening["line"] or (found and not opening["tag"]):
            return self._pass_over(opening, rest)
        return self._let_go(opening.end() + size)

    def _pass_over(
        self, opening: re.Match[str], rest: str = ""
    ) -> tuple[str, list[ToolCallChunk], bool]:
        """Let marks go, and of what stands behind them what begins no call.

        The first code block has all that follows, also the beginnings of others.
        """
        size = 0
        for fence in _FENCE.finditer(opening[0]):
            if fence["line"]:
                self._code = _end_of_code(fence["fence"])
                return self._let_go(fence.end())
        if rest:
            size = brackets_of(rest)
            if begins_object(rest):
                self._json = OtherJson(WRAPPERS, STEP_KEYS)
                self._json.read(rest[:size])
        return self._let_go(opening.end() + size)

    def _let_go(self, size: int) -> tuple[str, list[ToolCallChunk], bool]:
        text, self._held = self._held[:size], self._held[size:]
        return text, [], False

    def _inside(self, *, last: bool) -> tuple[str, list[ToolCallChunk], bool]:
        """Let JSON and code that are not a call go, until their end."""
        cut, goes_on = self._json.read(self._held) if self._json else self._read_code()
        if goes_on and last:
            cut = len(self._held)
        if not goes_on:
            self._json = self._code = None
        text, self._held = self._held[:cut], self._held[cut:]
        return text, [], goes_on

    def _read_code(self) -> tuple[int, bool]:
        """Return how much of what is held is the code block's, and whether it goes on."""
        end = self._code.search(self._held) if self._code else None
        if end is not None and end.end() < len(self._held):
            return end.end(), False
        return len(self._held.rstrip(" \t\r\n`")), True


def _end_of_code(fence: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!{fence[0]}){fence}{fence[0]}*[ \t]*(?=\r?\n|\Z)")


def _has_ended(opening: re.Match[str], rest: str) -> bool:
    """Whether the code block of some JSON has ended: marks in its texts do not count."""
    if not opening["line"]:
        return False
    pieces = re.compile(rf"{JSON_TEXT}|{_end_of_code(opening['fence']).pattern}", re.DOTALL)
    return any(not found[0].startswith('"') for found in pieces.finditer(rest))


def _partial_start(text: str) -> int:
    """Return where the end of `text` begins that could become the start of a call."""
    found = _PARTIAL.search(text)
    return found.start() if found else len(text)
