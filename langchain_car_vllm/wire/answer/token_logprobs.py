"""The log probabilities of an answer's tokens, told with the text that they are of."""

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import Any

from langchain_car_vllm.wire.answer.text_overlap import overlap


class TokenLogprobs:
    """Keeps log probabilities, in OpenAI's form, until the text of their tokens is let go.

    Attributes:
        entries: Those that wait.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def read(self, found: dict[str, Any] | None) -> bool:
        """Keep what an event tells, and return whether it tells any.

        Raises:
            TypeError: It is not in OpenAI's form.
        """
        # An older form has no `content`, but lists of its own.
        if found is None or (entries := found.get("content")) is None:
            return False
        if not all(isinstance(entry, dict) for entry in entries):
            raise TypeError("logprobs")
        self.entries.extend(entries)
        return True

    def take(self, let_go: str, withheld: str) -> tuple[dict[str, Any], ...]:
        """Return those of tokens that were let go as a whole.

        Args:
            let_go: The text that goes on now.
            withheld: The text behind it that does not.
        """
        if withheld and not let_go:
            return ()
        tokens, ends = self._read_tokens()
        seen = let_go.encode()
        if seen and (start := tokens.find(seen)) >= 0:
            place = start + len(seen)
        else:
            place = _place(tokens, withheld.encode())
        return self._remove(bisect_right(ends, place))

    def take_last(self, cut_off: str) -> tuple[dict[str, Any], ...]:
        """Return those of tokens of which some text was let go, and forget the others.

        Args:
            cut_off: The text at the end that nobody gets.
        """
        if cut_off and self.entries:
            tokens, ends = self._read_tokens()
            starts = [0, *ends[:-1]]
            del self.entries[bisect_left(starts, _place(tokens, cut_off.encode())) :]
        return self._remove(len(self.entries))

    def _read_tokens(self) -> tuple[bytes, list[int]]:
        """Return the text of the tokens, and where in it each of them ends."""
        pieces = [_bytes_of(entry) for entry in self.entries]
        return b"".join(pieces), [*accumulate(map(len, pieces))]

    def _remove(self, count: int) -> tuple[dict[str, Any], ...]:
        found = tuple(self.entries[:count])
        del self.entries[:count]
        return found


def _place(tokens: bytes, withheld: bytes) -> int:
    """Return where a text begins in that of tokens, which may lag behind it or be ahead of it."""
    if (place := tokens.rfind(withheld)) >= 0:
        return place
    if lagging := overlap(tokens, withheld):
        return len(tokens) - lagging
    return 0 if overlap(withheld, tokens) or withheld.endswith(tokens) else len(tokens)


def _bytes_of(entry: dict[str, Any]) -> bytes:
    """Return the bytes of a token, as far as they are told."""
    told = entry.get("bytes")
    try:
        return bytes(told if isinstance(told, list) else str(entry.get("token", "")).encode())
    except (TypeError, ValueError):
        return b""
