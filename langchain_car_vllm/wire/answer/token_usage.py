"""How many tokens an answer took, in the words of each server."""

from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Tokens of one request.

    Attributes:
        prompt: Tokens of the prompt.
        completion: Tokens of the answer.
        cached: Prompt tokens that came from the server's cache, None where it does not say.
        estimated: Whether the numbers are a guess, because the answer was cut short here.
        reasoning: Tokens of the answer that were thought, None where it does not say.
    """

    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    estimated: bool = False
    reasoning: int | None = None


def read_usage(told: Any) -> Usage | None:
    """Return the tokens that an event tells, None for what tells none: no answer is lost for it."""
    if isinstance(told, dict) and isinstance(told.get("usage"), dict):
        told = told["usage"]  # as Groq tells them, in a field of its own
    if not isinstance(told, dict):
        return None
    prompt = _count(told, "prompt_tokens") or _count(told, "input_tokens")
    completion = _count(told, "completion_tokens") or _count(told, "output_tokens")
    if prompt is None and completion is None:
        return None
    return Usage(
        prompt=prompt or 0,
        completion=completion or 0,
        cached=_count(told.get("prompt_tokens_details"), "cached_tokens"),
        reasoning=_count(told.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(told: Any, name: str) -> int | None:
    try:
        return int(told[name])
    except (LookupError, OverflowError, TypeError, ValueError):
        return None
