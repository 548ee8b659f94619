"""Thoughts that a server without a reasoning parser leaves in the text."""

import re

from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.text_overlap import overlap
from langchain_car_vllm.wire.answer.waiting_text import WaitingText

_WORDS = ("think", "thinking", "thought", "reasoning")
_TAGS = {f"<{word}>": f"</{word}>" for word in _WORDS} | {"[THINK]": "[/THINK]"}
_CLOSING = "</think>"
# Templates that begin the thought in the prompt have its end stand on a line of its own. Where JSON
# or code stands before it, it is only spoken of.
_BEGUN = re.compile(r"(?!\s*[{\[])((?:(?!<think>|```|~~~).)*\n)</think>[ \t]*(?:\n+|\Z)", re.DOTALL)


class ThinkTagFilter(Filter):
    """Turns `<think>...</think>`, or what a model writes for it, into reasoning.

    It stands at the beginning of an answer, once or several times. Where the prompt holds the
    first tag, an answer that comes whole is split at the second one; a stream is not held back for
    that.
    """

    def __init__(self) -> None:
        self._held = WaitingText()
        self._close = ""  # the tag that ends the thought, once that has begun
        self._joint = ""  # what comes before more of the thoughts
        self._has_thought = False
        self._is_behind = False  # a thought has ended
        self._over = False
        self._is_fresh = False  # nothing but line breaks has come behind a tag

    def feed(self, delta: Delta) -> Delta | None:
        """Return what is surely text, and what is surely thought."""
        if self._is_fresh:
            delta = delta._replace(text=delta.text.lstrip("\n"))
            self._is_fresh = not delta.text
        if self._over:
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
        if not self._close:
            begun = text.lstrip()
            tag = next((tag for tag in _TAGS if begun.startswith(tag)), None)
            if tag is not None:
                self._close = _TAGS[tag]
                text = begun.removeprefix(tag).lstrip("\n")
                self._is_fresh = not text
            elif any(tag.startswith(begun) for tag in self._expected()):
                self._held.keep(text)
                return "", ""
            else:
                self._over = True
                return (text, "") if self._is_behind else self._split_text(text)
        return self._split_thought(text)

    def _expected(self) -> list[str]:
        """Return the tags that may come next."""
        return [*_TAGS] if self._is_behind else [*_TAGS, _CLOSING]

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
        begun = text.lstrip()
        if begun.startswith(_CLOSING):
            thought, said = "", begun.removeprefix(_CLOSING).lstrip("\n")
        elif found := _BEGUN.match(text):
            thought, said = found[1].strip("\n"), text[found.end() :]
        else:
            return text, ""
        self._is_fresh = not said
        return said, thought
