"""The values that parameters may have, read alike wherever they are set.

The fields of a model are of these kinds too, so that a call takes what a constructor takes.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticKnownError

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.ids import written
from langchain_car_vllm.support.foreign_numbers import is_truth_value
from langchain_car_vllm.support.printable import format_value
from langchain_car_vllm.wire.reasoning import Reasoning
from langchain_car_vllm.wire.request.headers import check_headers


def _refuse_truth(error: Any) -> Callable[[Any], Any]:
    """Return what refuses True and False, which Python counts among the numbers."""

    def checked(value: Any) -> Any:
        if is_truth_value(value):
            raise PydanticKnownError(error)
        return value

    return checked


Number = Annotated[float, BeforeValidator(_refuse_truth("float_type"))]
"""A number of any library, or a text that holds one."""
Count = Annotated[int, BeforeValidator(_refuse_truth("int_type"))]
"""A whole number, the same way."""
_Name = Annotated[str, BeforeValidator(lambda x: written(x) if isinstance(x, os.PathLike) else x)]


class _Kind(NamedTuple):
    """What a value must be, in words and for pydantic."""

    title: str
    type: Any


_NUMBER = _Kind("a number", Number)
_COUNT = _Kind("a whole number", Count)
_SWITCH = _Kind("True or False", bool)
_MAPPING = _Kind("a dictionary with strings as keys", dict[str, Any])
_KINDS = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": _COUNT,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "max_tokens": _COUNT,
    "stop": _Kind("a string or a list of strings", list[str] | str),
    "timeout": _NUMBER,
    "keep_alive": _Kind('seconds, or a string such as "10m"', str | Number),
    "reasoning": _Kind('True, False, "low", "medium" or "high"', Reasoning),
    "thinking_budget": _COUNT,
    "logprobs": _SWITCH,
    "top_logprobs": _COUNT,
    "max_input_tokens": _COUNT,
    "model": _Kind("a string", _Name),
    "tools": _Kind("a list", list[Any]),
    "parallel_tool_calls": _SWITCH,
    "extra_body": _MAPPING,
    "extra_headers": _MAPPING,
    "chat_template_kwargs": _MAPPING,
    "logit_bias": _Kind("a dictionary", dict[Any, Any]),
    "enable_thinking": _SWITCH,
    "thinking_token_budget": _COUNT,
}
"""What is not here is read by its own module, or by the server."""
# What belongs into a dictionary may be a key, whatever was given in its place.
_UNSHOWN = ("extra_body", "extra_headers")
MOST_TOP_LOGPROBS = 20
_POSITIVE = (
    "timeout",
    "max_tokens",
    "max_input_tokens",
    "thinking_budget",
    "thinking_token_budget",
    "repetition_penalty",
)
_NATURAL = ("temperature", "top_p", "top_k", "min_p")
_SHARES = ("top_p", "min_p")


def checked_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they are sent, of a call as of a constructor.

    Raises:
        ConfigurationError: A value is of the wrong kind, or out of its range.
    """
    return {name: _checked(name, value) for name, value in given.items()}


def _checked(name: str, value: Any) -> Any:
    kind = _KINDS.get(name)
    if value is None or kind is None:
        return value
    try:
        found = _adapter(name).validate_python(value)
    except (ValidationError, OverflowError):
        instead = "" if name in _UNSHOWN else f", not `{format_value(value)}`"
        raise ConfigurationError(f"`{name}` must be {kind.title}{instead}") from None
    if name == "extra_headers":
        check_headers(name, found)
    if problem := _find_problem(name, found):
        raise ConfigurationError(f"`{name}` must be {problem}, not {format_value(value)}")
    return found


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[name].type)


def _find_problem(name: str, value: Any) -> str | None:
    """Return what a value must be and is not."""
    if name in _POSITIVE and not value > 0:
        return "more than 0"
    if name in _NATURAL and not value >= 0:
        return "0 or more"
    if name == "top_logprobs" and not 0 <= value <= MOST_TOP_LOGPROBS:
        return f"from 0 to {MOST_TOP_LOGPROBS}"
    if name in _SHARES and not value <= 1:
        return "at most 1"
    if _KINDS[name] in (_NUMBER, _COUNT) and not _is_finite(value):
        return "a finite number"
    return None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def logprob_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what asks the server for log probabilities, nothing where nobody wants them.

    Raises:
        ConfigurationError: The two parameters contradict each other.
    """
    wanted, most = given.get("logprobs"), given.get("top_logprobs")
    if most and wanted is False:
        raise ConfigurationError("`top_logprobs` needs `logprobs=True`")
    if not (wanted or most):
        return {}
    return {"logprobs": True, **({"top_logprobs": most} if most else {})}
