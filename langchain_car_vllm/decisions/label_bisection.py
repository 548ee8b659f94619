"""How likely labels are, found by what it takes to have a model write another one. No I/O.

For servers that tell no log probabilities but heed `logit_bias`, as vllm-mlx 0.6.0 does that was
started by hand: a label that is written instead of the likeliest one once its logit is raised by d
is less likely by the factor exp(-d). Each comparison bisects for that d with one-token answers.

What is to be sent is yielded, what comes back is sent in: the caller does the asking.
"""

import math
from collections.abc import Generator, Sequence
from typing import NamedTuple

from langchain_car_vllm.errors import InvalidRequestError, ServerFailedError

FARTHEST = 8.0
"""Logits between the likeliest label and one that counts as impossible: a share of 0.0003."""
STEPS = 7
"""Requests that halve this distance: the logit is known to a sixteenth of one."""
_BOOSTS = (4.0, 8.0, 16.0, 32.0, 64.0, 100.0)
_FORCE = 100.0
_FIRST, _LAST = "!", "~"
# Where single characters may stand in a vocabulary: at its beginning, and behind 1000 special ones.
_PROBES = (40, 1065)
# In vocabularies of SentencePiece, bytes that no text is written with stand so far up.
_UNWRITTEN = 3
_HINT = "leave `base_url` out, or use a server that returns `logprobs`"

Bias = dict[str, float]


class Alphabet(NamedTuple):
    """Where the characters of ASCII stand in a model's vocabulary.

    Attributes:
        offset: How far a token's number is above the character's.
    """

    offset: int

    def token(self, key: str) -> str:
        """Return the token of a label's key, as `logit_bias` names it."""
        return str(ord(key) + self.offset)


class Comparison(NamedTuple):
    """What was found of labels.

    Attributes:
        shares: How likely they are in relation to each other, 1 for the likeliest.
        natural: What the model writes where nobody interferes.
    """

    shares: list[float]
    natural: str


def find_alphabet() -> Generator[Bias, str, Alphabet]:
    """Find where characters stand: each neighbour in ASCII is a neighbour in the vocabulary.

    Raises:
        InvalidRequestError: The server ignores the bias, or the vocabulary is of another kind.
    """
    seen: set[str] = set()
    for number in _PROBES:
        first = yield {str(number): _FORCE}
        second = yield {str(number + 1): _FORCE}
        seen |= {first, second}
        is_single = len(first) == len(second) == 1 and _FIRST <= first < _LAST
        if is_single and ord(second) - ord(first) == 1 and number - ord(first) != _UNWRITTEN:
            return Alphabet(number - ord(first))
    if len(seen) == 1:
        raise InvalidRequestError(
            "this server returns no log probabilities, and ignores `logit_bias`, which would "
            "show how likely a label is",
            hint=_HINT,
        )
    raise _unreadable()


def compare_labels(keys: Sequence[str], alphabet: Alphabet) -> Generator[Bias, str, Comparison]:
    """Find how likely labels are as the first token of an answer.

    Args:
        keys: What the model writes for them, one character each.
        alphabet: Where these stand.

    Raises:
        ServerFailedError: No label is likely enough to be compared.
        InvalidRequestError: The model writes labels with other tokens.
    """
    tokens = {key: alphabet.token(key) for key in keys}
    natural = yield {}
    if natural not in tokens and natural.strip() in tokens:
        raise _unreadable()
    best, boost = natural, 0.0
    for boost_to_try in _BOOSTS:
        if best in tokens:
            break
        boost = boost_to_try
        best = yield dict.fromkeys(tokens.values(), boost)
    if best not in tokens:
        raise ServerFailedError(
            "the model writes none of the labels, however strongly they are favoured",
            hint="use a larger model, or one that answers without thinking",
        )
    if natural in tokens and (yield {tokens[natural]: -_FORCE}) == natural:
        raise _unreadable()
    shares = {best: 1.0}
    for key in keys:
        if key != best:
            shares[key] = yield from _share(key, tokens[key], tokens[best], boost)
    return Comparison([shares[key] for key in keys], natural)


def _share(key: str, token: str, best: str, boost: float) -> Generator[Bias, str, float]:
    """Find how likely a label is in relation to the likeliest one."""

    def bias(distance: float) -> Bias:
        # No more than it takes: a large number is a coarse one in 16 bits.
        return {token: boost + distance, **({best: boost} if boost else {})}

    if (yield bias(FARTHEST)) != key:
        return 0.0
    low, high = 0.0, FARTHEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if (yield bias(middle)) == key:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def _unreadable() -> InvalidRequestError:
    return InvalidRequestError(
        "this server returns no log probabilities, and there is no way to find out which tokens "
        "its model writes the labels with",
        hint=_HINT,
    )
