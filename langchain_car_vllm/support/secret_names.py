"""Which names give a secret away, and texts without what stands under them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MASK = "***"
# Compiled when a name is first looked at.
_TELLING = (
    r"(?i)keys?(?![a-z])|token|secret|passw|passphrase|passcode|pwd|credential|auth(?!or(?!iz))|bearer"
    r"|jwt|cookie|signature|(?<![a-z])(?:sig|pass)$"
)
_QUERY = re.compile(r"([?&])([\w.\-]+)=[^&#\s]+")
_USER = re.compile(r"(?<=://)[^\s/?#'\"`]+@")
# Without a scheme only what has a password: an address of mail names a user, too.
_BARE_USER = re.compile(r"(?<![^\s'\"`(,=])[^\s/?#'\"`(,=:@]{1,200}:[^\s/?#'\"`@]{1,200}@")
# Parameters that count tokens, or name those of a vocabulary.
_HARMLESS = (
    r"(?i)tokens?_|tokens$|tokeni[sz]|(?:max|min|num|new|per|first|next|stop|start|end|special|mask"
    r"|eos|bos|pad|unk|sep|cls|image|audio|video)[_-]?token$"
)
_SHORTEST = 12  # what is shorter is a word that somebody gave for a key, such as `ollama`


def is_secret_name(name: str) -> bool:
    """Return whether what stands under a name is to be shown to nobody."""
    return bool(re.search(_TELLING, re.sub(_HARMLESS, "", name)))


def without_user(address: str) -> str:
    """Return an address, with or without a scheme, with stars for a user and a password."""
    scheme, mark, rest = address.partition("://") if "://" in address else ("", "", address)
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    return f"{scheme}{mark}{MASK}@{host}{slash}{path}" if at and user else address


def without_users(text: str) -> str:
    """Return a text with stars for a user and a password in each address in it.

    It may alter other texts, so that nothing is to be loaded from what it returns.
    """
    return _BARE_USER.sub(f"{MASK}@", _USER.sub(f"{MASK}@", text))


def masked_text(text: str) -> str:
    """Return a text without users, passwords and secrets in the queries of addresses in it."""
    shown = without_user(text) if "://" in text else text
    return _QUERY.sub(
        lambda found: found[0] if not is_secret_name(found[2]) else f"{found[1]}{found[2]}={MASK}",
        _USER.sub(f"{MASK}@", shown),
    )


def secrets_of_headers(headers: Mapping[str, str]) -> set[str]:
    """Return what headers hold, whatever their names, and its words, as behind `Bearer`."""
    values = headers.values()
    return {*values, *(word for value in values for word in re.split(r"[\s;,=]+", value))}


def secrets_of_body(value: Any) -> dict[str, str]:
    """Return the texts of a JSON value that stand under the name of a secret, as headers do."""
    return {f"secret-{number}": text for number, text in enumerate(_secret_texts(value))}


def _secret_texts(value: Any) -> Iterator[str]:
    level, seen = [(value, False)], set()
    while level:
        inner, is_secret = level.pop()
        if (id(inner), is_secret) in seen:  # a value may hold itself; it is refused later
            continue
        seen.add((id(inner), is_secret))
        if isinstance(inner, Mapping):
            level += [(part, is_secret or is_secret_name(str(n))) for n, part in inner.items()]
        elif isinstance(inner, list | tuple):
            level += [(part, is_secret) for part in inner]
        elif isinstance(inner, str) and is_secret:
            yield inner


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return a text with stars for secrets in it; what is too short to be one stays."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
    return text
