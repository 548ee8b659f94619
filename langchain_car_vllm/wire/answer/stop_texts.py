"""Stop texts, enforced here: the server ignores them, or sends them along."""

from collections.abc import Sequence

from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.text_overlap import overlap


class StopFilter(Filter):
    """Cuts an answer before the first stop text, which never reaches the user even in part.

    Args:
        stop: The stop texts, none of them empty.
        told: Whether the server knows them and ends by itself, with the usage to follow.
    """

    def __init__(self, stop: Sequence[str], *, told: bool = False) -> None:
        self._stop = tuple(stop)
        self._told = told
        self._cut = False
        self._held = ""

    @property
    def withheld(self) -> str:
        """The text that was not let go."""
        return self._held

    def feed(self, delta: Delta) -> Delta | None:
        """Return what surely comes before any stop text."""
        if self._cut:
            self.done = True  # a server that was told goes on all the same
            return None
        if not delta.text:
            return delta
        text = self._held + delta.text
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self._cut = True
            self.done = not self._told
            end = min(places)
        else:
            end = len(text) - max(overlap(text, stop) for stop in self._stop)
        self._held = text[end:]
        return self._with(delta, text[:end])

    def end(self, finish_reason: str | None) -> list[Delta]:  # noqa: ARG002
        """Return what looked like the start of a stop text and was none."""
        if self._cut:
            return []
        held, self._held = self._held, ""
        return [Delta(held)] if held else []

    def _with(self, delta: Delta, text: str) -> Delta | None:
        if not (text or delta.thought or delta.calls):
            return None
        return delta._replace(text=text)
