"""Thoughts that a server without a reasoning parser leaves in the text."""

from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.text_overlap import overlap
from langchain_car_vllm.wire.answer.waiting_text import WaitingText

_WORDS = ("think", "thinking", "thought", "reasoning")
_TAGS = {f"<{word}>": f"</{word}>" for word in _WORDS} | {"[THINK]": "[/THINK]"}


class ThinkTagFilter(Filter):
    """Turns `<think>...</think>`, or what a model writes for it, into reasoning.

    It stands at the beginning of an answer.
    """

    def __init__(self) -> None:
        self._held = WaitingText()
        self._close = ""  # the tag that ends the thought, once that has begun
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
            elif any(tag.startswith(begun) for tag in _TAGS):
                self._held.keep(text)
                return "", ""
            else:
                self._over = True
                return text, ""
        thought, closed, rest = text.partition(self._close)
        if closed:
            self._over = True
            rest = rest.lstrip("\n")
            self._is_fresh = not rest
            return rest, thought.rstrip("\n")
        thought = text[: len(text) - overlap(text, self._close)].rstrip("\n")
        self._held.keep(text[len(thought) :])
        return "", thought
