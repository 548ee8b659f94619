"""What can be wrong with a setting, told in a sentence that says what to write instead."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pydantic import ValidationError

from langchain_car_vllm import environment
from langchain_car_vllm.errors import ConfigurationError

_REFUSED_ARGUMENTS = ("--host", "--port", "--api-key", "--served-model-name")
_REVISION = re.compile(r"[\w][\w./\-]*")
_MODEL_FOLDERS = frozenset(
    variable.name
    for variable in (
        environment.HF_HOME,
        environment.HF_HUB_CACHE,
        environment.HUGGINGFACE_HUB_CACHE,
    )
)
_MEMBERS = frozenset({"str", "float", "int", "bool"})
# Their values are shown to nobody, not even where they are wrong.
_SECRETS = frozenset({"api_key", "default_headers", "server_env"})


def check_positive(name: str, value: float) -> None:
    """Refuse a setting of 0 or less."""
    if not value > 0:
        raise ConfigurationError(f"`{name}` must be more than 0, not {value:g}")


def check_server(arguments: Iterable[str], variables: Iterable[str]) -> None:
    """Refuse arguments and variables that would contradict what this package sets itself."""
    for argument in arguments:
        if _is_refused(argument):
            raise ConfigurationError(
                f"`{argument}` is not for `server_args`: this package chooses it",
                hint="talk to a server of your own through `base_url`",
            )
    for name in variables:
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
