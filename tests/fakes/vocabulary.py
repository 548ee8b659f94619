"""What a model's tokens are, and which of them `logit_bias` makes the likeliest. Stdlib only."""

from collections.abc import Mapping
from dataclasses import dataclass

_UNLIKELY = -25.0
_LAST = 127


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of single characters in the order of ASCII, as byte-level vocabularies have them.

    Attributes:
        offset: How far a token's number is above its character's; -16 is SmolLM2's.
        is_written: Whether the model writes with these tokens. SentencePiece has such for bytes,
            and writes with others.
        grain: What logits are rounded to; an eighth is that of 16 bits at usual sizes.
    """

    offset: int = -16
    is_written: bool = True
    grain: float = 0.0

    def likeliest(self, likely: Mapping[str, float], bias: Mapping[str, float]) -> str:
        """Return the text of the token that is written.

        Args:
            likely: Log probabilities of texts where nobody interferes.
            bias: What is added, by the number of the token.
        """
        logits = {(text, self.is_written): value for text, value in likely.items()}
        for number, added in bias.items():
            point = int(number) - self.offset
            text = chr(point) if ord(" ") < point < _LAST else f"<{number}>"
            former = logits.get((text, True), _UNLIKELY)
            logits[text, True] = self._rounded(former + added)
        return max(logits, key=lambda token: self._rounded(logits[token]))[0]

    def _rounded(self, logit: float) -> float:
        return round(logit / self.grain) * self.grain if self.grain else logit
