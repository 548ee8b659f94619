"""The parameters a user may name, and what is said of the others.

Source: the request schema of vllm-mlx 0.6.0 (`api/models.py`), which ignores what it does not know.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.printable import format_value
from langchain_car_vllm.support.user_warnings import warn_user_once
from langchain_car_vllm.wire.request.headers import check_headers

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "max_tokens",
)
"""Sent under the names they have here."""

OURS = (
    "reasoning",
    "thinking_budget",
    "logprobs",
    "top_logprobs",
    "timeout",
    "keep_alive",
    "tools",
    "tool_choice",
    "tool_choice_method",
    "parallel_tool_calls",
    "response_format",
    "extra_body",
    "extra_headers",
    "max_input_tokens",
    "stream",
    "stream_options",
    "stream_usage",
)
"""Taken in a call and turned into something else, or used here."""

SERVERS = (
    "logit_bias",
    "reasoning_effort",
    "chat_template_kwargs",
    "enable_thinking",
    "thinking_token_budget",
    "tool_argument_recovery",
    "video_fps",
    "video_max_frames",
    "specprefill",
    "specprefill_keep_pct",
    "specprefill_backbone_pct",
    "mllm_draft",
)
"""The server's own, sent as they are."""

AT_CONSTRUCTION = frozenset(
    {
        "revision",
        "engine",
        "adapter",
        "draft",
        "server_args",
        "server_env",
        "auto_install",
        "auto_pull",
        "base_url",
        "api_key",
        "default_headers",
        "model_kwargs",
        "max_retries",
        "on_progress",
        "startup_timeout",
        "validate_model_on_init",
        "profile",
        "streaming",
        "disable_streaming",
        "fetch_media",
    }
)
"""What a model is made with and no call can change."""

IN_A_CALL = frozenset({*SAMPLING, *OURS, *SERVERS, "model"})
"""All that a call may name."""

IGNORED = frozenset(
    {
        "seed",
        "n",
        "best_of",
        "frequency_penalty",
        "user",
        "store",
        "metadata",
        "service_tier",
        "prediction",
        "modalities",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "web_search_options",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "tfs_z",
    }
)
"""The server takes and forgets them."""

_MEANT = {
    "num_predict": "`max_tokens`",
    "max_completion_tokens": "`max_tokens`",
    "max_new_tokens": "`max_tokens`",
    "max_output_tokens": "`max_tokens`",
    "num_ctx": '`profile={"max_input_tokens": ...}`; the context window itself is the model\'s',
    "n_ctx": '`profile={"max_input_tokens": ...}`; the context window itself is the model\'s',
    "context_window": '`profile={"max_input_tokens": ...}`',
    "repeat_penalty": "`repetition_penalty`",
    "repeat_last_n": "`repetition_penalty`",
    "format": "`with_structured_output(...)` or `response_format`",
    "json_schema": "`with_structured_output(...)` or `response_format`",
    "stop_sequences": "`stop`",
    "model_name": "`model`",
    "model_id": "`model`",
    "model_path": "`model`",
    "request_timeout": "`timeout`",
    "think": "`reasoning`",
    "reasoning_effort": '`reasoning="low"`, `"medium"` or `"high"`',
    "thinking": "`reasoning`",
    "functions": "`bind_tools(...)`",
    "function_call": "`bind_tools(..., tool_choice=...)`",
    "openai_api_key": "`api_key`",
    "openai_api_base": "`base_url`",
    "api_base": "`base_url`",
    "endpoint": "`base_url`",
    "host": "`base_url`",
    "port": "`base_url`",
    "validate_model": "`validate_model_on_init`",
    "idle_timeout": "`keep_alive`",
    "draft_model": "`draft`",
    "speculative_model": "`draft`",
    "adapter_path": "`adapter`",
    "lora": "`adapter`",
    "headers": "`default_headers`",
}

_NOT_NEEDED = {
    "organization": "a server on this machine knows none",
    "openai_organization": "a server on this machine knows none",
    "openai_proxy": "the standard variables of proxies are heeded",
    "num_gpu": "the whole model runs on the GPU",
    "num_thread": "the server decides",
    "stream_usage": "usage is told, unless a call says `bind(stream_usage=False)`",
    "use_responses_api": "the server's API is that of chat completions",
}

_HINTS = {name: f"use {meant}" for name, meant in _MEANT.items()} | {
    name: f"leave it out: {reason}" for name, reason in _NOT_NEEDED.items()
}


class _Kind(NamedTuple):
    title: str
    types: tuple[Any, ...]


_NUMBER = _Kind("a number", (int, float))
_COUNT = _Kind("a whole number", (int,))
_MAPPING = _Kind("a dictionary", (Mapping,))
_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(SAMPLING, _NUMBER),
    **dict.fromkeys(
        ("top_k", "max_tokens", "thinking_budget", "max_input_tokens", "top_logprobs"), _COUNT
    ),
    **dict.fromkeys(
        ("extra_body", "extra_headers", "chat_template_kwargs", "logit_bias"), _MAPPING
    ),
    "timeout": _NUMBER,
    "model": _Kind("a string", (str,)),
    "tools": _Kind("a list", (list, tuple)),
}
MOST_TOP_LOGPROBS = 20
_POSITIVE = ("timeout", "max_tokens", "thinking_budget", "repetition_penalty")
_NATURAL = ("temperature", "top_p", "top_k", "min_p")
_SHARES = ("top_p", "min_p")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse unknown parameters and warn, once each, about those the server ignores.

    Raises:
        ConfigurationError: A name is unknown; the right one is in the hint.
    """
    known = set(known)
    for name in given:
        if name in known:
            continue
        if name in IGNORED:
            warn_once(name)
            continue
        raise ConfigurationError(
            f"`{name}` is not a parameter of this model", hint=_hint(name, known)
        )


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse values that cannot work, of a call as of a constructor.

    Raises:
        ConfigurationError: A value is of the wrong kind, or out of its range.
    """
    for name, value in given.items():
        kind = _KINDS.get(name)
        if value is None or kind is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind.types):
            # What belongs into a dictionary may be a key, whatever was given in its place.
            instead = "" if kind is _MAPPING else f", not `{format_value(value)}`"
            raise ConfigurationError(f"`{name}` must be {kind.title}{instead}")
        if name == "extra_headers":
            check_headers(name, value)
        if problem := _find_problem(name, value):
            raise ConfigurationError(f"`{name}` must be {problem}, not {format_value(value)}")


def _find_problem(name: str, value: Any) -> str | None:
    """Return what a value must be and is not."""
    if name in _POSITIVE and not value > 0:
        return "more than 0"
    if name in _NATURAL and not value >= 0:
        return "0 or more"
    if name in _SHARES and not value <= 1:
        return "at most 1"
    return None if _is_finite(value) else "a finite number"


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def logprob_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what asks the server for log probabilities, nothing where nobody wants them.

    Raises:
        ConfigurationError: The two parameters contradict each other, or have no sense.
    """
    wanted, most = given.get("logprobs"), given.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise ConfigurationError(f"`logprobs` must be True or False, not `{format_value(wanted)}`")
    if most is not None and not 0 <= most <= MOST_TOP_LOGPROBS:
        raise ConfigurationError(
            f"`top_logprobs` must be from 0 to {MOST_TOP_LOGPROBS}, not {most}"
        )
    if most and wanted is False:
        raise ConfigurationError("`top_logprobs` needs `logprobs=True`")
    if not (wanted or most):
        return {}
    return {"logprobs": True, **({"top_logprobs": most} if most else {})}


def without_ignored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the server does not ignore."""
    return {name: value for name, value in given.items() if name not in IGNORED}


def _hint(name: str, known: set[str]) -> str | None:
    if hint := _HINTS.get(name.lower()):
        return hint
    if name in IN_A_CALL and "extra_body" in known:
        return f"give it in the call, or with `bind({name}=...)`"
    if name in AT_CONSTRUCTION and known >= IN_A_CALL:
        return "set it where the model is made, or by `model_copy(update=...)`"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if near:
        return f"did you mean `{near[0]}`?"
    if "extra_body" in known:
        return "fields of the server's own that are not listed go into `extra_body`"
    return None


def warn_once(name: str) -> None:
    """Say, the first time in this process, that the server ignores a parameter."""
    instead = "; a call gives one: `batch([prompt] * 2)` gives two" if name == "n" else ""
    warn_user_once(f"vllm-mlx ignores `{name}`: it has no effect on the answer{instead}")
