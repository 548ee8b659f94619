"""Tool calls that come as text: held back until it is clear what they are.

Models write calls in forms that the server's parser does not know, or knows only where the answer
is not streamed: a JSON object, a JSON code block, a tag without an end. Text that begins
like one is held back. JSON that names a bound tool becomes the call; anything else is let go as
the text it is, at the first sign that it is not a call.
"""

import re
from collections.abc import Iterator

from langchain_core.messages.tool import ToolCallChunk

from langchain_car_vllm.wire.answer.call_parts import whole_calls
from langchain_car_vllm.wire.answer.other_json import OtherJson
from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.waiting_text import WaitingText
from langchain_car_vllm.wire.answer.written_calls import (
    FENCE,
    OPENING,
    STEP_KEYS,
    TAG_ENDS,
    TAGS,
    WRAPPERS,
    CallNames,
    any_of,
    begins_other_json,
    brackets_of,
    may_be_call,
    read_calls,
    read_json,
    without_ends,
)

# A look behind keeps long blanks from being looked through once for each of their characters.
_START = re.compile(rf"(?<!\s)\s*(?:{any_of(TAGS)}|```|[{{\[])")
_BEGUN = {tag[:size] for tag in TAGS for size in range(1, len(tag))}
_PARTIAL = re.compile(rf"(?<!\s)\s*(?:{any_of(_BEGUN)}|`{{1,2}})?\Z")
_FENCE_END = re.compile(r"```[ \t]*(?=\n|\Z)")
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
        self._code = False
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
            if OPENING.fullmatch(self._held):  # a tag that opens nothing
                self._held = ""
        if self._code or self._json:
            return self._inside(last=last)
        found = _START.search(self._held)
        if found is None:
            cut = len(self._held) if last else _partial_start(self._held)
            text, self._held = self._held[:cut], self._held[cut:]
            return text, [], True
        if found.start() > 0:
            text, self._held = self._held[: found.start()], self._held[found.start() :]
            return text, [], False
        size = self._size(last=last)
        if size is None:
            return "", [], True
        piece = self._held[:size]
        is_cut = self._is_cut and size == len(self._held)
        written = read_calls(piece, self._names, is_cut=is_cut)
        if written and not last:
            self._is_written = True
            return "", [], True
        self._held = self._held[size:]
        self._is_after_call = bool(written)
        chunks = whole_calls(written, self._calls)
        self._calls += len(chunks)
        return "" if chunks else piece, chunks, False

    def _inside(self, *, last: bool) -> tuple[str, list[ToolCallChunk], bool]:
        """Let JSON and code that are not a call go, until their end."""
        cut, goes_on = self._json.read(self._held) if self._json else self._read_code()
        if goes_on and last:
            cut = len(self._held)
        if not goes_on:
            self._json, self._code = None, False
        text, self._held = self._held[:cut], self._held[cut:]
        return text, [], goes_on

    def _read_code(self) -> tuple[int, bool]:
        """Return how much of what is held is the code block's, and whether it goes on."""
        end = _FENCE_END.search(self._held, 1)
        if end is not None and end.end() < len(self._held):
            return end.end(), False
        return len(self._held.rstrip(" \t\n`")), True

    def _size(self, *, last: bool) -> int | None:
        """Return how much of what is held is one piece, None where it has not ended yet."""
        body = self._held.lstrip()
        margin = len(self._held) - len(body)
        if not last and any(tag.startswith(body) for tag in TAGS):
            return None
        if opening := OPENING.match(body):
            return self._tag_size(body, opening.end(), margin, last=last)
        if body.startswith("```"):
            return self._fence_size(last=last)
        return self._json_size(body, margin, last=last)

    def _tag_size(self, body: str, start: int, margin: int, *, last: bool) -> int | None:
        inner = body[start:]
        if inner.startswith(("{", "[")):
            size = self._json_size(inner, margin + start, last=last)
            self._json = None  # in a tag of calls, a call is one however deep it stands
        elif inner.startswith("`"):
            ends = [found for end in TAG_ENDS if (found := inner.find(end)) >= 0]
            size = margin + start + min(ends) if ends else None
        elif inner and not any(tag.startswith(inner) for tag in TAGS):
            return margin + start  # words: no call that is known here
        else:
            size = None
        return len(self._held) if size is None and last else size

    def _fence_size(self, *, last: bool) -> int | None:
        opening = FENCE.match(self._held)
        if opening is None:
            body = self._held.lstrip()
            return len(self._held) - len(body) + 3 if last or "\n" in body else None
        inner = self._held[opening.end() :]
        is_tag = any(inner.startswith(tag) or tag.startswith(inner) for tag in TAGS)
        may_be = is_tag or (opening[1].lower() in _CALL_LANGUAGES and may_be_call(inner))
        if not may_be:
            self._code = True
            return opening.end()
        mark = self._held.find("```", opening.end())  # far cheaper than the pattern, for each part
        end = _FENCE_END.search(self._held, opening.end()) if mark >= 0 else None
        if end is None or (end.end() == len(self._held) and not last):
            return len(self._held) if last else None
        return end.end()

    def _json_size(self, body: str, margin: int, *, last: bool) -> int | None:
        if not may_be_call(body):
            size = brackets_of(body)
            if begins_other_json(body):
                self._json = OtherJson(WRAPPERS, STEP_KEYS)
                self._json.read(body[:size])
            return margin + size
        found = read_json(body, last=last)
        if found is not None:
            return margin + found[1]
        return len(self._held) if last else None


def _partial_start(text: str) -> int:
    """Return where the end of `text` begins that could become the start of a call."""
    found = _PARTIAL.search(text)
    return found.start() if found else len(text)
