"""What a ready server looks like to whoever talks to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Parsers:
    """The parsers the server was started with, None where it has none."""

    tool_call: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that can be talked to.

    Attributes:
        base_url: Root of the OpenAI API, such as `http://127.0.0.1:50123/v1`.
        api_key: The bearer key, None where the endpoint wants none. Never shown in `repr`.
        served_model: The name to put into requests.
        version: The version of `vllm-mlx`, None where unknown.
        engine: `simple` or `batched`, None where unknown.
        parsers: The parsers it was started with; None where unknown.
        multimodal: Whether it takes media; None where unknown.
        generation: Counts the starts under one key; another number is another process.
        context_window: Tokens that prompt and answer share, None where unknown.
        log_path: The server's log, None for an endpoint that somebody else runs.
        managed: Whether this package supervises the server.
        is_ours: Tells whether that very server still lives, so that nobody else listens on its
            port; None for an endpoint that somebody else runs.
    """

    base_url: str
    api_key: str | None
    served_model: str
    version: str | None = None
    engine: str | None = None
    parsers: Parsers | None = None
    multimodal: bool | None = None
    generation: int = 0
    context_window: int | None = None
    log_path: Path | None = None
    managed: bool = False
    is_ours: Callable[[], bool] | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, served_model={self.served_model!r})"
