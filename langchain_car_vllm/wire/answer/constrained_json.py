"""JSON that a grammar was to shape, and what tells that it did not, or that the end is missing."""

import json
import re
from typing import Any

from langchain_car_vllm.wire.errors import StructuredOutputError

_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*\w*\s*")


def check_not_cut(finish_reason: str | None, text: str) -> None:
    """Refuse JSON that ran out of tokens: the server closes its brackets (vllm-mlx 0.6.0).

    Prose that ran out is told as prose: more tokens would not make it JSON.

    Raises:
        StructuredOutputError: It was cut off.
    """
    if finish_reason != "length":
        return
    if text.lstrip()[:1].isalpha():
        raise unconstrained_error(text)
    raise StructuredOutputError(
        "the answer was cut off before its end: `max_tokens` is too small",
        answer=text,
        hint="raise `max_tokens`",
    )


def read_constrained(text: str, name: str = "answer") -> Any:
    """Return the JSON value of a text that a grammar was to shape.

    Raises:
        StructuredOutputError: It is not JSON, or not the whole of it.
    """
    text = without_fence(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        has_more = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        if has_more or not text.startswith(("{", "[")):
            raise unconstrained_error(text) from error
        raise StructuredOutputError(
            f"the {name} is not complete JSON",
            answer=text,
            hint="raise `max_tokens`: it may have been cut off",
        ) from error


def without_fence(text: str) -> str:
    """Return JSON without the marks of code that models put it into which nobody constrains."""
    text = text.strip()
    if fence := _FENCE.match(text):
        text = text[fence.end() :].removesuffix(fence[1]).rstrip()
    return text


def unconstrained_error(text: str, wanted: str = "JSON") -> StructuredOutputError:
    """Return the error for an answer that a grammar would not have let through."""
    return StructuredOutputError(
        f"this server does not constrain its answers: what it sent is not {wanted}",
        answer=text,
        hint="use a server that does, such as vllm-mlx, or a larger model",
    )


def misfit_error(what: str, reason: str, text: str) -> StructuredOutputError:
    """Return the error for JSON that does not fit what was asked for.

    Args:
        what: The class or the schema.
        reason: What does not fit.
        text: The answer.
    """
    return StructuredOutputError(
        f"the answer does not fit {what}: {reason}",
        answer=text,
        hint="say in a `description` what is wanted; `include_raw=True` returns the answer as well",
    )
