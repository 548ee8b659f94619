"""The parameters a user may name, and what is said of the others.

Source: the request schema of vllm-mlx 0.6.0 (`api/models.py`), which ignores what it does not know.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.user_warnings import warn_user_once
from langchain_car_vllm.wire.request.foreign_names import hint_for

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


def without_ignored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the server does not ignore."""
    return {name: value for name, value in given.items() if name not in IGNORED}


def _hint(name: str, known: set[str]) -> str | None:
    is_of_call = known >= IN_A_CALL
    if is_of_call and name in AT_CONSTRUCTION:
        return "set it when you create the model, or with `model_copy(update=...)`"
    if is_of_call and name == "stop":  # among the `model_kwargs`
        return "pass it by itself: `stop=...`"
    hint = hint_for(name, known | {"stop"} if is_of_call else known)
    if hint is None and is_of_call and (hint := hint_for(name, AT_CONSTRUCTION)):
        hint = f"{hint} when you create the model"
    if hint is None and name in IN_A_CALL and "extra_body" in known:
        hint = f"pass it in the call, or with `bind({name}=...)`"
    if hint is not None:
        return hint
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if near:
        return f"did you mean `{near[0]}`?"
    if "extra_body" in known:
        return "leave it out; a field of the server's own requests goes into `extra_body`"
    return None


def warn_once(name: str) -> None:
    """Say, the first time in this process, that the server ignores a parameter."""
    instead = (
        "; a call returns one answer: `batch([prompt] * 2)` returns two" if name == "n" else ""
    )
    warn_user_once(f"vllm-mlx ignores `{name}`: it has no effect on the answer{instead}")
