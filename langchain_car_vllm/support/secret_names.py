"""Which names give a secret away, and texts without what stands under them."""

import re
from collections.abc import Iterable, Mapping

MASK = "***"
_SECRET = re.compile(
    r"key|token|secret|passw|passphrase|passcode|pwd|credential|auth(?!or(?!iz))|bearer|jwt|cookie"
    r"|signature|(?<![a-z])(?:sig|pass)$",
    re.IGNORECASE,
)
# Parameters that count tokens, or name those of a vocabulary.
_HARMLESS = re.compile(
    r"tokens?_|tokens$|tokeni[sz]|(?:max|min|num|new|per|first|next|stop|start|end|special|mask|eos"
    r"|bos|pad|unk|sep|cls|image|audio|video)[_-]?token$",
    re.IGNORECASE,
)
_BETWEEN_WORDS = re.compile(r"[\s;,=]+")
_SHORTEST = 12  # what is shorter is a word that somebody gave for a key, such as `ollama`


def is_secret_name(name: str) -> bool:
    """Return whether what stands under a name is to be shown to nobody."""
    return bool(_SECRET.search(name)) and not _HARMLESS.search(name)


def secrets_of_headers(headers: Mapping[str, str]) -> set[str]:
    """Return the secrets in headers: values, and their words, as behind `Bearer`."""
    values = [value for name, value in headers.items() if is_secret_name(name)]
    return {*values, *(word for value in values for word in _BETWEEN_WORDS.split(value))}


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return a text with stars for secrets in it; what is too short to be one stays."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
    return text
