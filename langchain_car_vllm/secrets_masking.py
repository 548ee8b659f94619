"""Settings as they may be shown: in `repr`, dumps, traces and cache keys.

What a name gives away as a secret is replaced by stars wherever it stands; all else stays, since a
loaded model needs it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from langchain_car_vllm.support.secret_names import MASK, is_secret_name, masked_text

_NEVER_SHOWN = frozenset({"api_key", "default_headers", "server_env"})


def masked_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name without the secrets that hide in values that are shown."""
    return {
        name: _masked_setting(name, value) if value and name in _MASKED else value
        for name, value in given.items()
    }


def _masked_setting(name: str, value: Any) -> Any:
    try:
        return _MASKED[name](value)
    except RecursionError:  # no request can hold it either
        return MASK


def secrets_digest(given: Mapping[str, Any]) -> str:
    """Return a digest of all that is not shown of settings, empty where nothing is hidden.

    A cache must tell apart what is sent to an endpoint as somebody else, and keep none of it.
    """
    hidden = {
        name: _revealed(value)
        for name, value in given.items()
        if value and (name in _NEVER_SHOWN or masked_settings({name: value})[name] != value)
    }
    return hashlib.sha256(repr(hidden).encode(errors="replace")).hexdigest()[:16] if hidden else ""


def _revealed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _revealed(inner) for name, inner in value.items()}
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def mask(value: Any) -> Any:
    """Return a JSON value with stars for what stands under the name of a secret."""
    if isinstance(value, Mapping):
        return {name: _mask_named(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask(inner) for inner in value]
    return masked_text(value) if isinstance(value, str) else value


def _mask_named(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "extra_headers":
        return _masked_headers(value)
    return MASK if is_secret_name(name) else mask(value)


def _masked_headers(value: Any) -> Any:
    return dict.fromkeys(value, MASK) if isinstance(value, Mapping) else MASK


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with stars for the values of options that name a secret."""
    found: list[str] = []
    is_value = False
    for argument in arguments:
        name, mark, _ = argument.partition("=")
        if is_value and not argument.startswith("-"):
            found.append(MASK)
            is_value = False
            continue
        is_secret = argument.startswith("-") and is_secret_name(name)
        is_value = is_secret and not mark
        found.append(f"{name}={MASK}" if is_secret and mark else masked_text(argument))
    return found


def _masked_command(value: Any) -> Any:
    """Return a command line masked, and nothing of what is not one and is refused later."""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return masked_arguments(value)
    return MASK


_MASKED: dict[str, Callable[[Any], Any]] = {
    "base_url": mask,
    "extra_body": mask,
    "extra_headers": _masked_headers,
    "model_kwargs": mask,
    "server_args": _masked_command,
}
