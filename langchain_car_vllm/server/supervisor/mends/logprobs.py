"""Log probabilities of an answer's tokens, in the form of OpenAI's API, where they are asked for.

vllm-mlx 0.6.0 takes `logprobs` and forgets it. Both of its engines hand the logits of every step to
the logits processors of a request, so a last processor that changes nothing can note them. A
request that does not ask has no such processor, and costs nothing.
"""

import importlib
import json
import re
from collections import deque
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from .mend import UnknownCodeError, find, mend, tell_that_it_stepped_aside

_NAME = "logprobs"
_MOST_ALTERNATIVES = 20
_LEAST = -9999.0
_EVENT = "data: {"
# SentencePiece writes a space and a byte so.
_SPACE = "\u2581"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
# Of the request that this task answers.
_current: "ContextVar[LogprobNotes | None]" = ContextVar("logprob_notes", default=None)


class LogprobNotes:
    """A logits processor that changes nothing and notes what each token's alternatives were.

    A step reads the token of the step before, so it is called with each token before that token is
    sent, the last one included.

    Args:
        mx: The module `mlx.core`.
        tokenizer: Tells the texts of tokens.
        most: How many alternatives are noted of each token.
    """

    def __init__(self, mx: Any, tokenizer: Any, most: int) -> None:
        self._mx = mx
        self._tokenizer = tokenizer
        self._most = most
        self._logits: Any = None
        self._has_ended = False
        # The engine's thread adds, the event loop takes.
        self._entries: deque[dict[str, Any]] = deque()
        found = getattr(tokenizer, "eos_token_ids", None) or [tokenizer.eos_token_id]
        self._ends = {found} if isinstance(found, int) else set(found)
        self._letters = _byte_letters()

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Note the token that the logits before were for, and return these as they are."""
        if self._logits is not None and len(tokens) and not self._has_ended:
            try:
                self._note(int(tokens[-1]))
            except Exception as error:  # noqa: BLE001 - it would end all answers under way
                self._has_ended = True
                tell_that_it_stepped_aside(_NAME, error)
        self._logits = logits
        return logits

    def take(self) -> "list[dict[str, Any]]":
        """Return what was noted since the last time."""
        found = []
        while self._entries:
            found.append(self._entries.popleft())
        return found

    def _note(self, token: int) -> None:
        self._has_ended = token in self._ends
        if self._has_ended:
            return
        mx = self._mx
        row = self._logits.reshape(-1).astype(mx.float32)
        row = row - mx.logsumexp(row)
        best: list[int] = []
        if self._most:
            places = mx.argpartition(-row, self._most)[: self._most]
            best = places[mx.argsort(-row[places])].tolist()
        values = row[mx.array([token, *best])].tolist()
        entry = self._entry(token, values[0])
        pairs = zip(best, values[1:])  # noqa: B905 - Python 3.10
        entry["top_logprobs"] = [self._entry(place, value) for place, value in pairs]
        self._entries.append(entry)

    def _entry(self, token: int, value: float) -> "dict[str, Any]":
        text, raw = self._text_of(token)
        return {"token": text, "logprob": max(value, _LEAST), "bytes": list(raw)}

    def _text_of(self, token: int) -> "tuple[str, bytes]":
        """Return a token's text and its bytes; a part of a character has bytes alone."""
        text = self._tokenizer.decode([token])
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):
            return text, text.encode()
        if _BYTE.fullmatch(piece):
            raw = bytes.fromhex(piece[3:5])
            return raw.decode(errors="replace"), raw
        if piece.startswith(_SPACE) and not text.startswith(" "):
            text = " " + text
        if "\ufffd" in text and all(letter in self._letters for letter in piece):
            return text, bytes(self._letters[letter] for letter in piece)
        return text, text.encode()


def _byte_letters() -> "dict[str, int]":
    """Return the letters in which a byte-level tokenizer writes bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return {**letters, **{chr(0x100 + place): byte for place, byte in enumerate(others)}}


@mend("logprobs-request", "vllm_mlx.api.models", "vllm-mlx 0.6.0")
def _take_fields(module: Any) -> None:
    """Have the schemas of chat keep what asks for log probabilities, and what answers."""
    request, choice, response = (
        find(module, f"ChatCompletion{name}") for name in ("Request", "Choice", "Response")
    )
    if "logprobs" in request.model_fields or "logprobs" in choice.model_fields:
        raise UnknownCodeError("this version has log probabilities of its own")
    field = importlib.import_module("pydantic").Field
    module.ChatCompletionRequest = _extend(
        request,
        logprobs=("bool | None", None),
        top_logprobs=("int | None", field(default=None, ge=0, le=_MOST_ALTERNATIVES)),
    )
    module.ChatCompletionChoice = _extend(
        choice, logprobs=("dict | None", field(default_factory=_take_current))
    )
    module.ChatCompletionResponse = _extend(
        response, choices=("list[ChatCompletionChoice]", field(default_factory=list))
    )


def _extend(model: Any, **fields: "tuple[str, Any]") -> Any:
    """Return a pydantic model with more fields, each with its type and its default."""
    names = {
        "__module__": model.__module__,
        "__doc__": model.__doc__,
        "__annotations__": {name: kind for name, (kind, _) in fields.items()},
        **{name: default for name, (_, default) in fields.items()},
    }
    return type(model.__name__, (model,), names)


def _take_current() -> "dict[str, Any] | None":
    notes = _current.get()
    return None if notes is None else {"content": notes.take()}


@mend(_NAME, "vllm_mlx.server", "vllm-mlx 0.6.0")
def _send_notes(module: Any) -> None:
    """Note log probabilities where a request asks for them, and send them with its events."""
    prepare = find(module, "_prepare_chat_completion_invocation", "engine", "request")
    stream = find(module, "stream_chat_completion", "engine", "messages", "request", "kwargs")
    tokenizer_of = find(module, "_get_engine_tokenizer", "engine")
    field = find(module, "ChatCompletionChoice").model_fields.get("logprobs")
    if getattr(field, "default_factory", None) is not _take_current:
        raise UnknownCodeError("requests cannot ask for log probabilities in our way")

    def prepare_with_notes(engine: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(engine, request, *args, **kwargs)
        _current.set(None)
        if getattr(request, "logprobs", None):
            mx = importlib.import_module("mlx.core")
            tokenizer = tokenizer_of(engine)
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
            notes = LogprobNotes(mx, tokenizer, request.top_logprobs or 0)
            existing = prepared.chat_kwargs.get("logits_processors") or []
            prepared.chat_kwargs["logits_processors"] = [*existing, notes]
            _current.set(notes)
        return prepared

    async def stream_with_notes(
        engine: Any, messages: Any, request: Any, *args: Any, **kwargs: Any
    ) -> "AsyncIterator[str]":
        processors = kwargs.get("logits_processors") or ()
        notes = next((p for p in processors if isinstance(p, LogprobNotes)), None)
        events = stream(engine, messages, request, *args, **kwargs)
        try:
            async for event in events:
                yield event if notes is None else _with_notes(event, notes)
        finally:
            await events.aclose()

    module._prepare_chat_completion_invocation = prepare_with_notes
    module.stream_chat_completion = stream_with_notes


def _with_notes(event: str, notes: LogprobNotes) -> str:
    """Return an event with what was noted since the one before."""
    if not event.startswith(_EVENT):
        return event
    chunk = json.loads(event.removeprefix("data: "))
    if not chunk.get("choices"):
        return event
    chunk["choices"][0]["logprobs"] = {"content": notes.take()}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


MENDS = (
    _take_fields,
    _send_notes,
)
