"""Counting tokens with the server's own tokenizer.

`/v1/messages/count_tokens` takes Anthropic's form and counts the texts without the chat template
(vllm-mlx 0.6.0), so it gives the least that a prompt has.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_car_vllm.wire.errors import PromptTooLongError
from langchain_car_vllm.wire.request.tools import size_of_tools

PATH = "/messages/count_tokens"
SECONDS = 10.0
"""Most that a count may take."""
_BYTES_PER_TOKEN, _MOST_BYTES = 3, 8
# What an answer without `max_tokens` is taken to have; few have more.
_USUAL_ANSWER = 4096
_MEDIA_TOKENS = {"image_url": 1500, "audio_url": 4000, "video_url": 8000}
_DATA = re.compile(r"data:(image|audio|video)/|[A-Za-z0-9+/_=-]{4096,}\Z")
_HELD = "but the memory set aside for this model has room for {limit:,}"
_CURE = "shorten or summarise the conversation, lower `max_tokens`, or choose a smaller model"
_NO_MEMORY = (f"prompt and answer may need {{tokens:,}} tokens, {_HELD}", _CURE)


class PromptLimit(NamedTuple):
    """How many tokens a prompt may have.

    Attributes:
        tokens: None for any number.
        words: What is said of a longer one, and what to do about it; of the window by default.
    """

    tokens: int | None
    words: tuple[str, ...] = ()


_UNLIMITED = PromptLimit(None)
_MEMORY_WORDS = (f"the prompt has at least {{tokens:,}} tokens, {_HELD}", _CURE)
_CHOSEN_WORDS = (
    "the prompt has at least {tokens:,} tokens, but `max_input_tokens` allows {limit:,}",
    "shorten or summarise the conversation, or raise that limit, which this program set",
)


def prompt_limit(window: int | None, memory: int | None, chosen: int | None) -> PromptLimit:
    """Return the lowest of the limits: what the model was made for, what fits, what the user set.

    Where two are equal, the one that no setting changes is told.
    """
    known = [(window, ()), (memory, _MEMORY_WORDS), (chosen, _CHOSEN_WORDS)]
    limits = [PromptLimit(limit, words) for limit, words in known if limit is not None]
    return min(limits, key=lambda limit: limit.tokens or 0, default=_UNLIMITED)


def count_request(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the body that asks for the number of tokens, but for the model's name."""
    return {
        "messages": [{"role": m["role"], "content": _texts(m)} for m in messages],
        "tools": [_tool(tool) for tool in tools],
    }


def read_count(answer: Mapping[str, Any]) -> int | None:
    """Return the number in an answer, None where there is none."""
    found = answer.get("input_tokens")
    return found if isinstance(found, int) else None


class RequestSize(NamedTuple):
    """What is known of a request's tokens before anybody counts them.

    Attributes:
        text_bytes: The bytes of all texts and of the tools.
        media_tokens: What its media take at most, about.
        answer_tokens: The most that its answer may have, None where nothing is said.
    """

    text_bytes: int
    media_tokens: int
    answer_tokens: int | None

    def needs_count(self, limit: PromptLimit, room: int | None) -> bool:
        """Tell whether the texts must be counted to know that the request fits.

        Args:
            limit: How many tokens its prompt may have.
            room: What there is for a single request, prompt and answer, None for any number.
        """
        # A token has at least one byte, so fewer bytes surely fit.
        may_overflow = limit.tokens is not None and self.text_bytes > limit.tokens
        return may_overflow or (room is not None and self._prompt() + self._answer() > room)

    def asked_tokens(
        self,
        limit: PromptLimit = _UNLIMITED,
        room: int | None = None,
        counted: int | None = None,
    ) -> int:
        """Return how many tokens the request asks for: its prompt and its answer.

        Args:
            limit: How many tokens its prompt may have.
            room: What there is for a single request, prompt and answer, None for any number.
            counted: Tokens of its texts as the server counted them, None for an estimate.

        Raises:
            PromptTooLongError: It asks for more than there is.
        """
        if counted is not None and limit.tokens is not None and counted > limit.tokens:
            raise PromptTooLongError(counted, limit.tokens, *limit.words)
        prompt = self._prompt() if counted is None else counted + self.media_tokens
        answer = self._answer()
        if self.answer_tokens is None and room is not None:
            answer = min(answer, max(room - prompt, 1))
        if room is None:
            return prompt + answer
        least = (self.text_bytes // _MOST_BYTES if counted is None else prompt) + answer
        if least > room:
            raise PromptTooLongError(least, room, *_NO_MEMORY)
        return min(prompt + answer, room)

    def reserved_tokens(self, room: int | None) -> int:
        """Return how many tokens are set aside for a request that may ask for any number.

        Programs ask for the most that some model answers; what there is bounds the answer.

        Raises:
            PromptTooLongError: Its prompt alone cannot fit.
        """
        answer = max(1, self._answer())
        if room is not None:
            answer = min(answer, max(room - self._prompt(), 1))
        return self._replace(answer_tokens=answer).asked_tokens(room=room)

    def _prompt(self) -> int:
        return self.text_bytes // _BYTES_PER_TOKEN + self.media_tokens

    def _answer(self) -> int:
        return _USUAL_ANSWER if self.answer_tokens is None else self.answer_tokens


def measure_request(body: Mapping[str, Any]) -> RequestSize:
    """Return the size of a request."""
    return RequestSize(_text_bytes(body), _media_tokens(body), _asked(body.get("max_tokens")))


def measure_foreign_request(body: Mapping[str, Any]) -> RequestSize:
    """Return the size of another program's request, whichever API's form it has."""
    level: list[Any] = [body]
    text_bytes = media_tokens = 0
    while level:
        inner = level.pop()
        if isinstance(inner, Mapping):
            # The model reads the names in a tool's schema, and those of a call's arguments.
            level += [*inner, *inner.values()]
        elif isinstance(inner, list):
            level += inner
        elif isinstance(inner, str) and (data := _DATA.match(inner)):
            media_tokens += _MEDIA_TOKENS[f"{data[1] or 'image'}_url"]
        elif isinstance(inner, str):
            text_bytes += len(inner.encode(errors="surrogatepass"))
    asked = body.get("max_tokens", body.get("max_output_tokens"))
    return RequestSize(text_bytes, media_tokens, _asked(asked))


def _asked(most: Any) -> int | None:
    """Return the most tokens of an answer, None for what the server will refuse."""
    return most if type(most) is int else None


def arrives_late(body: Mapping[str, Any]) -> bool:
    """Tell whether an answer arrives at its end: whole, constrained, or as a call that is parsed.

    The server streams none of these from their beginning.
    """
    return not body.get("stream") or bool(body.get("response_format") or body.get("tools"))


def _text_bytes(body: Mapping[str, Any]) -> int:
    """Return the bytes of all texts of a request."""
    texts = [text for message in body["messages"] for text in _flat(message)]
    # Half a surrogate pair is measured here and refused where it is sent.
    return size_of_tools(body.get("tools") or ()) + sum(
        len(text) if text.isascii() else len(text.encode(errors="surrogatepass")) for text in texts
    )


def _media_tokens(body: Mapping[str, Any]) -> int:
    """Return what the media of a request take at most, about."""
    kinds = [
        part.get("type")
        for message in body["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
    ]
    return sum(_MEDIA_TOKENS.get(kind, 0) for kind in kinds)


def _texts(message: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in _flat(message)]


def _flat(message: Mapping[str, Any]) -> list[str]:
    """Return all texts of a message; media are not counted."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    texts.append(message.get("reasoning_content"))
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        texts += [function.get("name"), function.get("arguments")]
    return [text for text in texts if isinstance(text, str) and text]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function") or {}
    return {
        "name": function.get("name"),
        "description": function.get("description"),
        "input_schema": function.get("parameters"),
    }
