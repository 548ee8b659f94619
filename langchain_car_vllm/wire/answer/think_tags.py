"""Thoughts that a server without a reasoning parser leaves in the text."""

import re

from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.text_overlap import overlap
from langchain_car_vllm.wire.answer.waiting_text import WaitingText

_WORDS = ("think", "thinking", "thought", "reasoning")
_TAGS = {f"<{word}>": f"</{word}>" for word in _WORDS} | {"[THINK]": "[/THINK]"}
# Templates that begin the thought in the prompt have these; in quotes they are only spoken of.
_TAG = re.compile(r"""(?<![`"'])</?think>""")
_OPENING, _CLOSING = "<think>", "</think>"


class ThinkTagFilter(Filter):
    """Turns `<think>...</think>`, or what a model writes for it, into reasoning.

    It stands at the beginning of an answer, once or several times. Where the prompt holds the
    first tag, an answer that comes whole is split at the second one; of a stream, which is not held
    back for that, the tag is left out.
    """

    def __init__(self) -> None:
        self._held = WaitingText()
        self._close = ""  # the tag that ends the thought, once that has begun
        self._joint = ""  # what comes before more of the thoughts
        self._has_thought = False
        self._is_behind = False  # a thought has ended
        self._is_text = False  # the answer began without a thought
        self._before = ""  # the last character of it that was let go
        self._over = False
        self._is_fresh = False  # nothing but line breaks has come behind a tag

    def feed(self, delta: Delta) -> Delta | None:
        """Return what is surely text, and what is surely thought."""
        if self._is_fresh:
            delta = delta._replace(text=delta.text.lstrip("\n"))
            self._is_fresh = not delta.text
        if self._over:
            return delta if delta.text or delta.thought or delta.calls else None
        if self._is_text and "<" not in delta.text and not self._held.text:
            self._before = delta.text[-1:] or self._before
            return delta if delta.text or delta.thought or delta.calls else None
        if delta.thought:  # the server has a parser
            text, thought = self._rest()
            return delta._replace(text=text + delta.text, thought=thought + delta.thought)
        text = thought = ""
        if self._held.add(delta.text):
            text, thought = self._split(self._held.text)
        if delta.calls and not self._over:  # the thought is not closed, or there is none
            rest = self._rest()
            text, thought = text + rest[0], thought + rest[1]
        return Delta(text, thought, delta.calls) if text or thought or delta.calls else None

    def end(self, finish_reason: str | None) -> list[Delta]:  # noqa: ARG002
        """Return what was held back."""
        text, thought = self._rest()
        return [Delta(text, thought)] if text or thought else []

    def _rest(self) -> tuple[str, str]:
        """Return what was held back as text and thought; what follows stays what it is."""
        held, self._over = self._held.text, True
        self._held.keep()
        return ("", held) if self._close else (held, "")

    def _split(self, text: str) -> tuple[str, str]:
        """Return text and thought of what came so far, and hold back what is undecided."""
        self._held.keep()
        if not (self._close or self._is_text):
            begun = text.lstrip()
            tag = next((tag for tag in _TAGS if begun.startswith(tag)), None)
            if tag is not None:
                self._close = _TAGS[tag]
                text = begun.removeprefix(tag).lstrip("\n")
                self._is_fresh = not text
            elif any(tag.startswith(begun) for tag in _TAGS):
                self._held.keep(text)
                return "", ""
            elif self._is_behind:
                self._over = True
                return text, ""
            else:
                self._is_text = True
        return self._split_thought(text) if self._close else self._split_text(text)

    def _split_thought(self, text: str) -> tuple[str, str]:
        thought, closed, rest = text.partition(self._close)
        if not closed:
            thought = text[: len(text) - overlap(text, self._close)]
        thought = thought.rstrip("\n")
        if not closed:
            self._held.keep(text[len(thought) :])
        if thought:
            thought, self._joint = self._joint + thought, ""
            self._has_thought = True
        if not closed:
            return "", thought
        self._close = ""
        self._is_behind = True
        self._joint = "\n" if self._has_thought else ""
        rest = rest.lstrip("\n")
        self._is_fresh = not rest
        said, more = self._split(rest)
        return said, thought + more

    def _split_text(self, text: str) -> tuple[str, str]:
        """Look for the end of a thought that began in the prompt."""
        found = _TAG.search(self._before + text, len(self._before))
        if found is None:
            size = len(text) - max(overlap(text, tag) for tag in (_OPENING, _CLOSING))
            self._held.keep(text[size:])
            self._before = text[:size][-1:] or self._before
            return text[:size], ""
        self._over = True
        if found[0] == _OPENING:
            return text, ""
        start, end = (place - len(self._before) for place in found.span())
        if self._before:
            return text[:start] + text[end:], ""
        rest = text[end:].lstrip("\n")
        self._is_fresh = not rest
        return rest, text[:start].strip("\n")
