"""`Endpoint`: address, key and facts of a ready server."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from langchain_car_vllm.support.bounded_http import basic_credentials
from langchain_car_vllm.support.secret_names import (
    secrets_of_headers,
    without_secrets,
    without_user,
)

Headers = tuple[tuple[str, str], ...]
"""Names and values that are sent with every request to an endpoint."""


@dataclass(frozen=True, slots=True)
class Parsers:
    """The parsers the server was started with, None where it has none."""

    tool_call: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What is served and how: all that the state on the disk and the endpoint have in common.

    A fact that is added here is written, read, handed on and shown without further code; whoever
    plans the launch gives it its value (`langchain_car_vllm.server.command`). None is unknown.

    Attributes:
        version: The version of `vllm-mlx`.
        engine: `simple` or `batched`.
        engine_note: Why it is not the better engine and what to do about it.
        parsers: The parsers it was started with.
        streams_tool_calls: False where its tool call parser loses calls in a stream.
        multimodal: Whether the server takes its multimodal route.
        media: The kinds it takes beside text, of `image`, `audio` and `video`.
        context_window: Tokens that prompt and answer share, as the model was trained.
        turn_order: `user-first` or `alternating` where the chat template refuses other turns.
        max_input_tokens: Tokens that prompt and answer can have in the memory that is set aside.
        kv_room_tokens: Tokens that all live requests can have in it, each padded to the longest.
        max_sequences: Requests that the server works on at the same time.
        draft: What drafts tokens: `mtp`, the model's own heads, or a draft model.
        reads_in_order: Whether it keeps prompts that come at the same time apart by itself, where
            it takes its multimodal route.
    """

    version: str | None = None
    engine: str | None = None
    engine_note: str | None = None
    parsers: Parsers | None = None
    streams_tool_calls: bool | None = None
    multimodal: bool | None = None
    media: tuple[str, ...] | None = None
    context_window: int | None = None
    turn_order: str | None = None
    max_input_tokens: int | None = None
    kv_room_tokens: int | None = None
    max_sequences: int | None = None
    draft: str | None = None
    reads_in_order: bool | None = None

    def facts(self) -> dict[str, Any]:
        """Return the facts by name."""
        return {name: getattr(self, name) for name in SERVING_FACTS}

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values, the parsers each by itself."""
        parsers = self.parsers or Parsers()
        values = self.facts()
        del values["parsers"]
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
            "tool_call_parser": parsers.tool_call,
            "reasoning_parser": parsers.reasoning,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave, also of a version that knew fewer facts or more."""
        known: dict[str, Any] = {k: values[k] for k in SERVING_FACTS if k in values}
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        if known.get("engine") is not None:
            parsers = Parsers(values.get("tool_call_parser"), values.get("reasoning_parser"))
            known["parsers"] = parsers
        return cls(**known)


SERVING_FACTS = tuple(fact.name for fact in dataclasses.fields(Serving))


@dataclass(frozen=True, slots=True)
class Endpoint(Serving):
    """A server that can be talked to, with what is known of it.

    Attributes:
        base_url: Root of the OpenAI API, such as `http://127.0.0.1:50123/v1`.
        api_key: The bearer key, None where the endpoint wants none. Never shown in `repr`.
        served_model: The name to put into requests.
        generation: Counts the starts under one key; another number is another process.
        log_path: The server's log, None for an endpoint that somebody else runs.
        managed: Whether this package supervises the server.
        files: What tells the files that it loaded from later ones, None where nothing does.
        is_ours: Tells whether that very server still lives, so that nobody else listens on its
            port; None for an endpoint that somebody else runs.
    """

    base_url: str
    api_key: str | None
    served_model: str
    generation: int = 0
    log_path: Path | None = None
    managed: bool = False
    files: str | None = None
    is_ours: Callable[..., bool] | None = field(default=None, compare=False, repr=False)

    @property
    def shown_url(self) -> str:
        """The address without a user and a password, for messages."""
        return without_user(self.base_url)

    def without_secrets(self, text: str, headers: Mapping[str, str]) -> str:
        """Return what a server said without the secrets that it got, and may quote in a refusal."""
        sent = {self.api_key or "", *secrets_of_headers(headers), *self._credentials()}
        return without_secrets(text, sent)

    def _credentials(self) -> set[str]:
        """Return the password in the address, and what is sent of it."""
        password = urlsplit(self.base_url).password
        if not password:
            return set()
        return {password, unquote(password), basic_credentials(self.base_url)}

    def __repr__(self) -> str:
        return f"Endpoint({self.shown_url!r}, served_model={self.served_model!r})"
