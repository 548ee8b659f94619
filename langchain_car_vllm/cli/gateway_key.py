"""The key of what is served to other programs, in a file."""

import ipaddress
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from langchain_car_vllm.cli.output import say
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.paths import run_root
from langchain_car_vllm.server.directory import make_checked


def find_key_file(given: Path | None, host: str) -> Path:
    """Return the file with the key, made where it is our own and missing.

    Raises:
        ConfigurationError: Other machines could use the model without a key of the user's, or the
            file cannot be used.
    """
    if given is None:
        if not is_loopback(host):
            raise ConfigurationError(
                f"`--host {host}` lets other machines in, so it needs a key of yours",
                hint="write one to a file that you alone can read, and name it: --api-key-file",
            )
        return _own_key_file()
    return _checked_key_file(given)


def _checked_key_file(path: Path) -> Path:
    try:
        text, mode = path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not text" if isinstance(error, ValueError) else error.strerror
        raise ConfigurationError(
            f"the key file `{path}` cannot be read: {reason}",
            hint="make one with `openssl rand -hex 32 > FILE && chmod 600 FILE`",
        ) from error
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(
            f"`{path}` does not hold a key: one line of ASCII, no spaces",
            hint="write one into it; `car-vllm` makes its own anew where it is missing",
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        say(f"warning: others can read `{path}`; `chmod 600` changes that")
    return path


def _own_key_file() -> Path:
    path = run_root().with_name("gateway.key")
    make_checked(path.parent)
    if not path.exists():
        # Whoever reads it finds a whole key or no file, also on a full disk.
        with NamedTemporaryFile("w", dir=path.parent, prefix=".key-", encoding="ascii") as draft:
            draft.write(f"{secrets.token_urlsafe(32)}\n")
            draft.flush()
            with suppress(FileExistsError):
                os.link(draft.name, path)
    return _checked_key_file(path)


def is_loopback(host: str) -> bool:
    """Whether an address or a name is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
