"""One answer of the server, streamed or whole, as the same sequence of deltas.

There is no I/O here: bytes go in, deltas come out, so the synchronous and the asynchronous side
share every decision. A whole answer is a stream of one delta.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from langchain_core.messages.tool import ToolCallChunk

from langchain_car_vllm.wire.answer.call_parts import CallReader
from langchain_car_vllm.wire.answer.event_failures import failure_from, failure_of
from langchain_car_vllm.wire.answer.event_parser import EventParser
from langchain_car_vllm.wire.answer.sse import EventReader
from langchain_car_vllm.wire.answer.token_logprobs import TokenLogprobs
from langchain_car_vllm.wire.answer.token_usage import Usage, read_usage
from langchain_car_vllm.wire.errors import (
    ConnectionFailedError,
    IncompleteAnswerError,
    InvalidRequestError,
    ServerFailedError,
)

_DONE = b"[DONE]"
# What JSON or a web page begins with, and the fields of events and comments.
_OF_A_DOCUMENT, _OF_EVENTS, _BLANKS = b'{["<', b"d:eir", b"\xef\xbb\xbf \t\r\n"
# Far beyond every answer: what comes of a server that never ends must not fill the memory.
_LONGEST_EVENT, _LONGEST_WHOLE, _LONGEST_STREAM = 64 << 20, 256 << 20, 1 << 30


class Delta(NamedTuple):
    """What one event adds to the answer.

    Attributes:
        text: More of the answer.
        thought: More of the reasoning.
        calls: Parts of tool calls, as LangChain's chunks.
        logprobs: Log probabilities of tokens, in OpenAI's form.
    """

    text: str = ""
    thought: str = ""
    calls: tuple[ToolCallChunk, ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


class Filter(Protocol):
    """Holds back, cuts or turns deltas on their way to the user."""

    done: bool = False
    """Nothing more is wanted of this answer."""

    @property
    def withheld(self) -> str:
        """The end of the text that came, where it has not gone on or never will."""
        return ""

    def feed(self, delta: Delta) -> Delta | None:
        """Return what may go on now, None for nothing."""

    def end(self, finish_reason: str | None) -> Iterable[Delta]:
        """Return what was held back and may go on after all, in order.

        Args:
            finish_reason: Why the server stopped, None where nobody waited for its reason.
        """


class Answer:
    """Turns the bytes of one answer into deltas and keeps what comes beside them.

    Args:
        streamed: Whether server-sent events were asked for, or one JSON document. Some gateways do
            not heed it, so what the bytes are is seen by their beginning.
        filters: What deltas pass through, in order.
        most: Most tokens that it was to have, None where nothing was said.
        names: The user's names of tools that went out under another one, by that one.
        wants_logprobs: Whether the server was asked for log probabilities.

    Attributes:
        finish_reason: Why the server stopped, None until it says so.
        usage: The tokens, None where the server does not tell. The server tells twice (on the
            finish chunk and on one of its own); the last counts.
        done: Nothing more is wanted: the connection may be closed.
        is_ended: The server has said that nothing more follows.
        id: The server's name for the answer.
        model: The model's name as the server gives it.
        drafts: Tokens that were drafted and accepted, None where the server does not tell.
        events: How many events carried something, about the number of tokens.
    """

    def __init__(
        self,
        *,
        streamed: bool,
        filters: Sequence[Filter] = (),
        most: int | None = None,
        names: Mapping[str, str] | None = None,
        wants_logprobs: bool = False,
    ) -> None:
        self._most = most
        self._logprobs = TokenLogprobs()
        self._lacks_logprobs = wants_logprobs
        self._reader = EventReader()
        self._parser = EventParser()
        self._whole: list[bytes] = []
        self._left = _LONGEST_STREAM if streamed else _LONGEST_WHOLE
        self._streamed = streamed
        self._is_begun = False
        self._filters = filters
        self._calls = CallReader(names)
        self.is_ended = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.done = False
        self.id: str | None = None
        self.model: str | None = None
        self.drafts: tuple[int, int] | None = None
        self.events = 0

    def feed(self, data: bytes) -> list[Delta]:
        """Return the deltas that `data` completes.

        Raises:
            AnswerError: The server reports a failure, or sends what is not an answer.
        """
        self._left -= len(data)
        if self._left < 0 or self._reader.held > _LONGEST_EVENT:
            raise ServerFailedError("the answer is longer than any real answer")
        if not self._is_begun:
            self._look_at_beginning(data)
        if not self._streamed:
            self._whole.append(data)
            return []
        return self._events(self._reader.feed(data))

    def _look_at_beginning(self, data: bytes) -> None:
        first = data.lstrip(_BLANKS)[:1]
        self._is_begun = bool(first)
        if first and first in (_OF_A_DOCUMENT if self._streamed else _OF_EVENTS):
            self._streamed = not self._streamed

    def end(self) -> list[Delta]:
        """Return the last deltas, once no more bytes come.

        Raises:
            AnswerError: The answer has no end, or is a failure.
        """
        if self._streamed:
            deltas = [] if self.done else self._events(self._reader.end())
        else:
            deltas = self._events([b"".join(self._whole).lstrip(_BLANKS)])
        if self.finish_reason is None and not self.done and self.is_ended:
            self.finish_reason = "stop"  # some servers give no reason, only an end
        if self.finish_reason is None and not self.done:
            raise IncompleteAnswerError(
                "the answer broke off before its end",
                hint="repeat the request; if the server was idle for too long, raise `timeout`",
            )
        self._mend_reason()
        if not self.done:
            rest = Delta(*self._parser.end(), self._calls.end())
            deltas.extend(self._filter(rest, 0) if any(rest) else ())
        return [*deltas, *self._flush()]

    def with_logprobs(self, deltas: list[Delta]) -> list[Delta]:
        """Give the log probabilities that have come so far to the last of some deltas."""
        if self._logprobs.entries and deltas:
            let_go = "".join(delta.text for delta in deltas)
            found = self._logprobs.take(let_go, self._withheld)
            deltas[-1] = deltas[-1]._replace(logprobs=found)
        return deltas

    def last_logprobs(self) -> tuple[dict[str, Any], ...]:
        """Return the log probabilities that no delta was given, once the answer has ended."""
        return self._logprobs.take_last(self._withheld)

    @property
    def _withheld(self) -> str:
        return "".join(holder.withheld for holder in reversed(self._filters))

    def _read_drafts(self, found: Any) -> None:
        drafted = found.get("mtp_drafts") if isinstance(found, dict) else None
        if drafted is not None:
            self.drafts = int(drafted), int(found.get("mtp_accepted") or 0)

    def add(self, delta: Delta) -> list[Delta]:
        """Return what passes the filters of a delta that was made after the end."""
        return [*self._filter(delta, 0), *self._flush()]

    def _flush(self) -> list[Delta]:
        deltas: list[Delta] = []
        for position, holder in enumerate(self._filters):
            for held in holder.end(self.finish_reason):
                deltas.extend(self._filter(held, position + 1))
        return deltas

    def _mend_reason(self) -> None:
        """Tell an answer that ran out of tokens from a whole one.

        The simple engine says `stop` for both where a model takes media, and counts two tokens too
        many then (vllm-mlx 0.6.0).
        """
        used = self.usage.completion if self.usage else 0
        limited = isinstance(self._most, int) and used > self._most
        if self.finish_reason == "stop" and limited:
            self.finish_reason = "length"

    def _events(self, payloads: list[bytes]) -> list[Delta]:
        deltas: list[Delta] = []
        for payload in payloads:
            if self.done:
                break
            if payload == _DONE:
                self.is_ended = True
                continue
            delta = self._event(payload) if payload or not self._streamed else None
            if delta is not None:
                self.events += 1
                deltas.extend(self.with_logprobs(self._filter(delta, 0)))
        return deltas

    def _filter(self, delta: Delta, start: int) -> list[Delta]:
        for holder in self._filters[start:]:
            passed = holder.feed(delta)
            self.done = self.done or holder.done
            if passed is None:
                return []
            delta = passed
        return [delta]

    def _event(self, payload: bytes) -> Delta | None:
        try:
            event = self._parser.parse(payload)
        except (ValueError, RecursionError) as error:
            raise ServerFailedError(
                f"the server sent something that is not JSON: {_excerpt(payload)}"
            ) from error
        try:
            return None if event is None and self._streamed else self._read(event)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServerFailedError(
                f"the server sent JSON that is not an answer: {_excerpt(payload)}"
            ) from error

    def _read(self, event: dict[str, Any]) -> Delta | None:
        if error := event.get("error"):
            raise failure_from(error)
        self._read_drafts(event.get("generation_metadata"))
        choice = self._choice(event)
        told = event.get("usage") or (choice and choice.get("usage")) or event.get("x_groq")
        if told and (usage := read_usage(told)):
            self.usage = usage
        if choice is None:
            return None
        self.is_ended |= not self._streamed  # a document that came whole has its end
        self._read_end(event, choice)
        if self._lacks_logprobs or choice.get("logprobs"):
            self._lacks_logprobs &= not self._logprobs.read(choice.get("logprobs"))
        delta = (
            (choice.get("delta") or self._in_one(choice)) if self._streamed else choice["message"]
        )
        text = delta.get("content") or ""
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        calls = delta.get("tool_calls") or delta.get("function_call")
        if type(text) is not str or type(thought) is not str:
            text, more = _flatten(text)
            thought = "".join((*_flatten(thought), more))
        if not (text or thought or calls):
            text = delta.get("refusal") or ""  # what OpenAI's models say instead
            return Delta(text) if isinstance(text, str) and text else None
        if self._lacks_logprobs and text:
            raise _no_logprobs()
        return Delta(text, thought, self._calls.read(calls) if calls else ())

    def _choice(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Return what an event adds to the first of the answers, None for nothing."""
        choices: list[dict[str, Any]] | None = event.get("choices")
        if choices and not choices[0].get("index"):
            return choices[0]  # as nearly every event is
        if not choices:
            if (failure := failure_of(event)) is not None:
                raise failure
            if choices is None and not self._streamed:
                raise KeyError("choices")
            return None  # the usage, or a sign of life
        first = next((choice for choice in choices if not int(choice.get("index") or 0)), None)
        # A part of another answer is for nobody; what comes whole is one, whatever its number.
        return choices[0] if first is None and not self._streamed else first

    def _in_one(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the message that some gateways send in one event, empty where it came in parts."""
        return {} if self.events else choice.get("message") or {}

    def _read_end(self, event: dict[str, Any], choice: dict[str, Any]) -> None:
        if not (reason := choice.get("finish_reason")):
            return
        reason = str(reason).lower()
        if reason in _NOT_YET:
            return
        if reason in _FAILED:
            if error := choice.get("error"):
                raise failure_from(error)
            raise ServerFailedError("the engine failed while it was generating")
        if reason in _BROKEN_OFF:
            raise ConnectionFailedError("the server broke the answer off: it is shutting down")
        self.finish_reason = _REASONS.get(reason, reason)
        self.id = event.get("id")
        self.model = event.get("model")


# What gateways pass on of other servers; a call that was cut off must not look whole.
_REASONS = {
    **dict.fromkeys(("eos", "eos_token", "end_turn", "stop_sequence", "complete"), "stop"),
    **dict.fromkeys(("max_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "error_limit"), "length"),
    **dict.fromkeys(("tool_use", "tool_call"), "tool_calls"),
    **dict.fromkeys(("safety", "sensitive", "content_filtered"), "content_filter"),
}
_NOT_YET = ("null", "none")
# In the words of DeepSeek and Zhipu, too.
_FAILED = ("error", "insufficient_system_resource", "network_error")
_BROKEN_OFF = ("abort", "aborted", "cancelled", "canceled", "user_cancel")


_TEXTS, _BESIDE = (None, "text", "output_text", "refusal"), ("reference", "citation")


def _said(block: dict[str, Any]) -> Any:
    return block.get("text") or block.get("refusal") or ""


def _no_logprobs() -> InvalidRequestError:
    return InvalidRequestError(
        "this server returns no log probabilities",
        hint="leave `logprobs` out, or use a vllm-mlx that this package starts",
    )


def _flatten(content: Any) -> tuple[str, str]:
    """Return the text and the reasoning of a content that comes as a list of blocks.

    Raises:
        TypeError: It is neither a text nor a list of blocks.
    """
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list | dict):
        raise TypeError("content")
    text = thought = ""
    for block in content if isinstance(content, list) else [content]:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind in ("thinking", "reasoning"):
            inner = block.get(kind, block.get("text"))
            thought += _flatten(inner or "")[0]
        elif kind in _TEXTS:
            text += _flatten(_said(block) if isinstance(block, dict) else block)[0]
        elif kind not in _BESIDE:
            raise TypeError("content")
    return text, thought


def _excerpt(payload: bytes) -> str:
    text = payload[:120].decode(errors="replace")
    return f"`{text}`" if text else "nothing"
