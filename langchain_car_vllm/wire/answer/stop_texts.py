"""Stop texts, enforced here: the server ignores them, or sends them along."""

from collections.abc import Sequence

from langchain_car_vllm.wire.answer.reader import Delta, Filter


class StopFilter(Filter):
    """Cuts an answer before the first stop text, which never reaches the user even in part.

    Args:
        stop: The stop texts, none of them empty.
        told: Whether the server knows them and ends by itself, with the usage to follow.
    """

    def __init__(self, stop: Sequence[str], *, told: bool = False) -> None:
        self._stop = tuple(stop)
        self._told = told
        self._held = ""
        self._cut = False

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
            self._held = ""
            return self._with(delta, text[: min(places)])
        kept = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - kept :]
        return self._with(delta, text[: len(text) - kept])

    def end(self, finish_reason: str | None) -> list[Delta]:  # noqa: ARG002
        """Return what looked like the start of a stop text and was none."""
        held, self._held = self._held, ""
        return [Delta(held)] if held else []

    def _with(self, delta: Delta, text: str) -> Delta | None:
        if not (text or delta.thought or delta.calls):
            return None
        return delta._replace(text=text)


def overlap(text: str, stop: str) -> int:
    """Return how many last characters of `text` could begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
