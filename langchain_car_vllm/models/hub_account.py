"""Where the Hub is, and who the user is there."""

import os
from pathlib import Path

from langchain_car_vllm import paths

_DEFAULT_ENDPOINT = "https://huggingface.co"


def hub_endpoint() -> str:
    """Return the address of the Hub: `HF_ENDPOINT`, else the public one."""
    return (paths.variable("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


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
