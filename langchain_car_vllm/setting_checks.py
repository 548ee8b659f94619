"""What can be wrong with a setting, told in a sentence that says what to write instead."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.paths import variable

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_REFUSED_ARGUMENTS = ("--host", "--port", "--api-key", "--served-model-name")
_REVISION = re.compile(r"[\w][\w./\-]*")
_MODEL_FOLDERS = frozenset({"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
_MEMBERS = frozenset({"str", "float", "int", "bool"})
# Their values are shown to nobody, not even where they are wrong.
_SECRETS = frozenset({"api_key", "default_headers", "server_env"})


def seconds(value: str | float, name: str, *, lowest: float = 0) -> float:
    """Return a duration in seconds, -1 for one that never ends where `lowest` allows it.

    Args:
        value: Seconds, or a number with `s`, `m`, `h` or `d`.
        name: The setting, for the error.
        lowest: The smallest value; between it and 0 nothing is allowed.

    Raises:
        ConfigurationError: It is no such duration.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(value))
        if match is None:
            raise ConfigurationError(
                f"`{name}` must be a duration, not `{value}`",
                hint='write seconds, or text such as "30s", "10m" or "2h"',
            ) from None
        found = float(match[1]) * _UNITS[match[2]]
    if found != found or (found < 0 and found != lowest):  # noqa: PLR0124 - NaN
        allowed = "0 or more" + (", or -1 for ever" if lowest < 0 else "")
        raise ConfigurationError(f"`{name}` must be {allowed}, not `{value}`")
    return found


def check_positive(name: str, value: float) -> None:
    """Refuse a setting of 0 or less."""
    if not value > 0:
        raise ConfigurationError(f"`{name}` must be more than 0, not {value:g}")


def check_server(arguments: Iterable[str], environment: Iterable[str]) -> None:
    """Refuse arguments and variables that would contradict what this package sets itself."""
    for argument in arguments:
        if _is_refused(argument):
            raise ConfigurationError(
                f"`{argument}` is not for `server_args`: this package chooses it",
                hint="talk to a server of your own through `base_url`",
            )
    for name in environment:
        if name in _MODEL_FOLDERS:
            raise ConfigurationError(
                f"`{name}` is not for `server_env`: models are looked up here too",
                hint=f"set {name} in the environment of this program",
            )


def _is_refused(argument: str) -> bool:
    """Return whether an argument is ours to choose; the server understands short forms too."""
    name = argument.partition("=")[0]
    return len(name) > len("--") and any(full.startswith(name) for full in _REFUSED_ARGUMENTS)


def check_revision(revision: str) -> None:
    """Refuse what cannot be a branch, a tag or a commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ConfigurationError(
            f"`revision` cannot be `{revision}`",
            hint="name a branch, a tag or a commit, or leave it out for the default branch",
        )


def checked_url(url: str) -> str:
    """Return an address without its last slash.

    Raises:
        ConfigurationError: It has no scheme, or names no host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        rest = url.rsplit("://", maxsplit=1)[-1].lstrip("/")
        raise ConfigurationError(
            f"`base_url` must begin with http:// or https://, not `{url}`",
            hint=f"did you mean `http://{rest}`?"
            if rest
            else "write an address such as `http://127.0.0.1:8000/v1`",
        )
    return url.rstrip("/")


def configuration_error(error: ValidationError) -> ConfigurationError:
    """Return what pydantic found as this package's error; no secret is shown."""
    first = error.errors(include_url=False)[0]
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, ConfigurationError):
        return cause
    # Of a union, pydantic names the member too.
    parts = [str(part) for part in first["loc"] if part not in _MEMBERS]
    name = ".".join(parts) or "the configuration"
    if first["type"] == "missing":
        return ConfigurationError(f"`{name}` is missing")
    if parts and parts[0] in _SECRETS:
        return ConfigurationError(f"`{name}` cannot be used: {first['msg']}")
    return ConfigurationError(f"`{name}` cannot be `{first['input']!r}`: {first['msg']}")


def flag(name: str) -> bool:
    """Return whether a variable of the environment leaves something on, as it is without one."""
    return (variable(name) or "1").lower() not in ("0", "false", "no", "off")


def secret(name: str) -> SecretStr | None:
    """Return a variable of the environment that nobody may see, None where it is not set."""
    value = variable(name)
    return SecretStr(value) if value else None
