"""Where the Hub is, and who the user is there."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from langchain_car_vllm import environment, paths
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.model_files import read_text
from langchain_car_vllm.support.secret_names import without_user

_FOLDERS = (
    environment.HF_HOME,
    environment.HF_HUB_CACHE,
    environment.HUGGINGFACE_HUB_CACHE,
    environment.HF_TOKEN_PATH,
    environment.XDG_CACHE_HOME,
)
_DEFAULT_ENDPOINT = "https://huggingface.co"


def hub_endpoint() -> str:
    """Return the address of the Hub: `HF_ENDPOINT`, else the public one."""
    return (environment.HF_ENDPOINT.read() or _DEFAULT_ENDPOINT).rstrip("/")


def checked_endpoint() -> str:
    """Return the address of the Hub, once it is one that can be asked.

    Raises:
        ConfigurationError: `HF_ENDPOINT` is not an address.
    """
    endpoint = hub_endpoint()
    try:
        parts = urlsplit(endpoint)
        has_host = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        has_host = False
    is_written_well = endpoint.startswith(("http://", "https://")) and " " not in endpoint
    if not (has_host and is_written_well and endpoint.isprintable()):
        raise ConfigurationError(
            f"HF_ENDPOINT must be an http or https address, not `{without_user(endpoint)}`",
            hint="unset HF_ENDPOINT, or set it to a mirror such as `https://hub.example.com`",
        )
    return endpoint


def hub_home() -> Path | None:
    """Return the folder of the Hub's own client, None without a home."""
    if value := environment.HF_HOME.read():
        return expand(value)
    if value := environment.XDG_CACHE_HOME.read():
        return expand(value) / "huggingface"
    home = paths.home()
    return home / ".cache" / "huggingface" if home else None


def expand(value: str) -> Path:
    """Return the path that a variable of the Hub's names."""
    # `Path.expanduser` raises where nobody has a home.
    return Path(os.path.expanduser(os.path.expandvars(value)))  # noqa: PTH111


def absolute_folders(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the Hub's folders so that they mean the same from any working directory."""
    return {
        folder.name: os.path.abspath(expand(value))  # noqa: PTH100
        for folder in _FOLDERS
        if (value := variables.get(folder.name))
    }


def hub_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those of the variables that tell where the Hub and its files are."""
    folders = {folder.name for folder in _FOLDERS}
    return {k: v for k, v in variables.items() if k.startswith("HF_") or k in folders}


def hub_token() -> str | None:
    """Return the token that the Hub's own client would send, None where there is none.

    `HF_TOKEN`, else the file that the Hub's own client writes.
    """
    for variable in (environment.HF_TOKEN, environment.HUGGING_FACE_HUB_TOKEN):
        if value := variable.read():
            return value.strip()
    named, home = environment.HF_TOKEN_PATH.read(), hub_home()
    file = expand(named) if named else home / "token" if home else None
    text = read_text(file) if file else None
    return (text or "").strip() or None


def is_token_kept_back() -> bool:
    """Tell whether the user wants the Hub to be asked without the token that there may be."""
    return environment.is_hub_flag_on(environment.HF_HUB_DISABLE_IMPLICIT_TOKEN)


def sendable_token() -> str | None:
    """Return the token that the Hub is sent, None where there is none, or it is kept back.

    Raises:
        ConfigurationError: No header can hold it; whoever sent it would be told of it in an error.
    """
    token = None if is_token_kept_back() else hub_token()
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError(
            "the token for the Hub contains characters that no token can have",
            hint="set HF_TOKEN to a token from https://huggingface.co/settings/tokens",
        )
    return token
