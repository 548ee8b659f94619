"""Text that is held back until its end."""

from langchain_car_vllm.wire.answer.constrained_json import check_not_cut
from langchain_car_vllm.wire.answer.reader import Delta, Filter


class CollectingFilter(Filter):
    """Holds the text of an answer back until it can be judged; reasoning passes at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The text that was held back so far."""
        return "".join(self._texts)

    def feed(self, delta: Delta) -> Delta | None:
        """Collect the text and let the reasoning pass."""
        if delta.text:
            self._texts.append(delta.text)
        return Delta(thought=delta.thought) if delta.thought else None

    def end(self, finish_reason: str | None) -> list[Delta]:
        """Return the text, once it is whole.

        Raises:
            StructuredOutputError: It was cut off.
        """
        check_not_cut(finish_reason, self.text)
        return [Delta(self.text)]
