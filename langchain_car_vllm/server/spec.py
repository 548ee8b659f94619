"""What makes two users share one server."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.identity import identity_of
from langchain_car_vllm.models.remote_code import is_trusted
from langchain_car_vllm.models.snapshot import find_snapshot
from langchain_car_vllm.support.printable import encodable

Engine = Literal["auto", "simple", "batched"]
Kind = Literal["chat", "embeddings", "reranker"]
PROTOCOL = 1
_CHOSEN = ("--host", "--port", "--api-key", "--served-model-name")


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server as the user asked for it, before anything was located or downloaded.

    Attributes:
        source: What `vllm-mlx serve` is given: a Hub repository or an absolute directory.
        served_name: The served model name: the user's id without `vllm-mlx/`.
        revision: Hub revision, None for the default branch.
        engine: Which engine; `auto` decides once the model is known.
        server_args: Appended last to the command line.
        server_env: Added last to the server's environment; the values are secrets.
        kind: What it serves: chat, or one of what has a server of its own.
        adapter: A LoRA adapter on top of the model: an absolute folder, or a Hub repository.
        draft: What drafts tokens: `mtp` for the model's own heads, or another model.
        keep_alive: Seconds without a request after which it stops; 0 at once, -1 never. No part
            of the identity.
        auto_install: Whether the runtime may be installed. No part of the identity.
        auto_pull: Whether the model may be downloaded. No part of the identity.
    """

    source: str
    served_name: str
    revision: str | None = None
    engine: Engine = "auto"
    server_args: tuple[str, ...] = ()
    server_env: tuple[tuple[str, str], ...] = ()
    kind: Kind = "chat"
    adapter: str | None = None
    draft: str | None = None
    keep_alive: float = 600.0
    auto_install: bool = True
    auto_pull: bool = True

    def __repr__(self) -> str:
        return (
            f"ServerSpec({self.source!r}, served_name={self.served_name!r}, engine={self.engine!r})"
        )

    def key(self, binary: str | None = None) -> str:
        """Return the identity as 16 hexadecimal digits: equal for all names of the same weights.

        The first who asks gives the server its name; everybody else is told of it.

        Args:
            binary: The real path that `CAR_VLLM_MLX_BIN` names, None where it is not set.
        """
        identity: list[Any] = [
            PROTOCOL,
            *identity_of(self.source, self.revision),
            self.engine,
            self.server_args,
            sorted(self.server_env),
            self.kind,
            binary,
        ]
        if self.adapter is not None:
            identity.append(["adapter", *identity_of(self.adapter)])
        if self.draft is not None:
            identity.append(["draft", *identity_of(self.draft)])
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def trust(self) -> bool:
        """Whether the user trusts code that the model brings."""
        return is_trusted(self.server_args)

    def find_snapshot(self) -> Path | None:
        """Return the complete local copy of the model, None where there is none.

        Raises:
            UnservableModelError: A copy may be there, and this user may not look.
        """
        return find_snapshot(self.source, self.revision, trust=self.trust)

    @property
    def settings(self) -> "ServerSpec":
        """What the identity is made of, as it was written, without a look at the disk."""
        return dataclasses.replace(self, keep_alive=0.0, auto_install=True, auto_pull=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ServerSpec":
        """Rebuild what `to_dict` gave."""
        arguments = tuple(values["server_args"])
        environment = tuple((name, value) for name, value in values["server_env"])
        return cls(**{**values, "server_args": arguments, "server_env": environment})


def check_arguments(arguments: Iterable[str]) -> None:
    """Refuse words that no process can be given, and those that contradict what is set here.

    Raises:
        ConfigurationError: There is one.
    """
    for argument in arguments:
        if not can_be_passed(argument):
            raise ConfigurationError(
                "`server_args` contains a word that cannot be put on a command line"
            )
        # The server understands short forms, too.
        flag = re.match(r"(--?[A-Za-z][\w-]*)(\s*)", argument)
        name = flag[1] if flag else argument.partition("=")[0]
        if len(name) > len("--") and any(chosen.startswith(name) for chosen in _CHOSEN):
            raise ConfigurationError(
                f"`{name}` cannot be set in `server_args`: this package chooses it",
                hint="start a server yourself and name it in `base_url`",
            )
        if flag and flag[2]:
            raise ConfigurationError(
                f"`server_args` contains `{name}` and its value as one word",
                hint=f'write `{name}=...`, or two words: `["{name}", "..."]`',
            )


def can_be_passed(text: str) -> bool:
    """Tell whether a process can be given a text, as an argument or in its environment."""
    return "\0" not in text and encodable(text) == text


def argument_value(arguments: Sequence[str], flag: str) -> str | None:
    """Return what a command line gives a flag; the last one wins, None where it is not there."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return found
