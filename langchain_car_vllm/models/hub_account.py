"""Where the Hub is, and who the user is there."""

import os
from collections.abc import Mapping
from pathlib import Path

from langchain_car_vllm import paths

_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "XDG_CACHE_HOME")
_DEFAULT_ENDPOINT = "https://huggingface.co"


def hub_endpoint() -> str:
    """Return the address of the Hub: `HF_ENDPOINT`, else the public one."""
    return (paths.variable("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def absolute_folders(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the Hub's folders so that they mean the same from any working directory."""
    return {
        name: os.path.abspath(os.path.expanduser(os.path.expandvars(value)))  # noqa: PTH100, PTH111
        for name, value in environment.items()
        if name in _FOLDERS and value
    }


def hub_token() -> str | None:
    """Return the token that the Hub's own client would send, None where there is none.

    `HF_TOKEN`, else the file that `hf auth login` writes.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := paths.variable(name):
            return value.strip()
    file = paths.variable("HF_TOKEN_PATH") or _usual_file()
    try:
        text = Path(os.path.expanduser(file)).read_text(encoding="utf-8") if file else ""  # noqa: PTH111
    except (OSError, UnicodeDecodeError):
        return None
    return text.strip() or None


def _usual_file() -> str | None:
    if value := paths.variable("HF_HOME"):
        return f"{value}/token"
    if value := paths.variable("XDG_CACHE_HOME"):
        return f"{value}/huggingface/token"
    home = paths.home()
    return str(home / ".cache" / "huggingface" / "token") if home else None
