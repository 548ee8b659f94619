"""From deltas to the messages LangChain wants."""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import BaseModel

from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.wire.answer.call_collector import CallCollector
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.token_usage import Usage
from langchain_car_vllm.wire.reasoning import PROVIDER, REASONING


class AnswerEnd(NamedTuple):
    """What stands at the end of an answer.

    Attributes:
        finish_reason: Why it ended: `stop`, `length` or `tool_calls`.
        model: The served model's name.
        usage: Tokens of all requests of the call, None where unknown.
        id: The server's name for the answer.
        extra: More entries for `response_metadata`.
        drafts: Tokens that were drafted and accepted, None where the server does not tell.
    """

    finish_reason: str
    model: str
    usage: Usage | None
    id: str | None
    extra: dict[str, Any]
    drafts: tuple[int, int] | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the message's `response_metadata`."""
        found: dict[str, Any] = {
            "finish_reason": self.finish_reason,
            **_finish_fields(self.finish_reason),
            "model_name": self.model,
            "model_provider": PROVIDER,
            **self.extra,
        }
        if self.id:
            found["id"] = self.id
        if self.usage and self.usage.estimated:
            found["usage_estimated"] = True
        return found

    def usage_metadata(self) -> UsageMetadata | None:
        """Return the tokens as LangChain counts them."""
        if self.usage is None:
            return None
        counted = UsageMetadata(
            input_tokens=self.usage.prompt,
            output_tokens=self.usage.completion,
            total_tokens=self.usage.prompt + self.usage.completion,
        )
        if self.usage.cached is not None:
            counted["input_token_details"] = InputTokenDetails(cache_read=self.usage.cached)
        if self.usage.reasoning is not None:
            counted["output_token_details"] = OutputTokenDetails(reasoning=self.usage.reasoning)
        return counted


# What langchain-core reads of them (1.8.4): a cut-off answer is the one that is not whole.
_NORMALIZED = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "content_filter": "content_filter",
}
_INCOMPLETE = ("length", "content_filter")


def _finish_fields(reason: str) -> dict[str, str]:
    """Return the reason in LangChain's words, nothing for one that it has none for."""
    found = {"normalized_finish_reason": _NORMALIZED[reason]} if reason in _NORMALIZED else {}
    return {**found, "finish_state": "incomplete"} if reason in _INCOMPLETE else found


def add_times(end: AnswerEnd, stopwatch: Stopwatch, draft: str | None = None) -> AnswerEnd:
    """Return the end of an answer with its times, and with what the server's status told of it.

    Args:
        end: The end of the answer.
        stopwatch: Measured the call.
        draft: What drafts tokens on the server; how many came of it is told then, 0 for none.
    """
    usage = end.usage
    if usage is not None and usage.cached is None:
        usage = usage._replace(cached=stopwatch.tokens_from_cache(usage.prompt))
    prompt = completion = None
    if usage is not None and not usage.estimated:
        prompt, completion = usage.prompt - (usage.cached or 0), usage.completion
    timings = stopwatch.timings(prompt, completion)
    if end.drafts is not None or draft is not None:
        timings["drafted_tokens"], timings["accepted_tokens"] = end.drafts or (0, 0)
    return end._replace(usage=usage, extra={**end.extra, "timings": timings})


def to_chunk(delta: Delta) -> ChatGenerationChunk:
    """Return the chunk of a stream for `delta`."""
    metadata: dict[str, Any] = {"model_provider": PROVIDER}
    if delta.logprobs:
        metadata["logprobs"] = {"content": [*delta.logprobs]}
    if delta.calls:
        message = AIMessageChunk(
            content=delta.text,
            additional_kwargs={REASONING: delta.thought} if delta.thought else {},
            response_metadata=metadata,
            tool_call_chunks=list(delta.calls),
        )
        return ChatGenerationChunk(message=message)
    # Nearly every chunk is text alone. Validating it, twice, would cost more than all the rest.
    message = _copy_unvalidated(
        _MESSAGE,
        content=delta.text,
        additional_kwargs={REASONING: delta.thought} if delta.thought else {},
        response_metadata=metadata,
        tool_calls=[],
        invalid_tool_calls=[],
        tool_call_chunks=[],
    )
    return _copy_unvalidated(_CHUNK, message=message, text=delta.text)


_Model = TypeVar("_Model", bound=BaseModel)


def _all_set(model: _Model) -> _Model:
    """Count all fields as set, so that the set that says so can be everybody's."""
    model.__pydantic_fields_set__.update(type(model).model_fields)
    return model


_MESSAGE = _all_set(AIMessageChunk(content=""))
_CHUNK = _all_set(ChatGenerationChunk(message=_MESSAGE))


def _copy_unvalidated(pattern: _Model, **fields: Any) -> _Model:
    """Do what `model_copy` does, without a copy of what is replaced at once.

    LangChain keeps the chunks of a stream until it ends, and Python's collector walks through what
    is kept: two sets for each chunk would double the cost of sixteen streams at once.
    """
    kind = pattern.__class__
    made = kind.__new__(kind)
    _assign(made, "__dict__", {**pattern.__dict__, **fields})
    _assign(made, "__pydantic_fields_set__", pattern.__pydantic_fields_set__)
    _assign(made, "__pydantic_extra__", None if pattern.__pydantic_extra__ is None else {})
    _assign(made, "__pydantic_private__", None)
    return made


_assign = object.__setattr__


def last_chunk(end: AnswerEnd) -> ChatGenerationChunk:
    """Return the last chunk of a stream, which carries the metadata and the usage."""
    message = AIMessageChunk(
        content="",
        response_metadata=end.metadata(),
        usage_metadata=end.usage_metadata(),
        chunk_position="last",
    )
    return ChatGenerationChunk(
        message=message, generation_info={"finish_reason": end.finish_reason}
    )


def to_result(deltas: Iterable[Delta], end: AnswerEnd) -> ChatResult:
    """Return the whole answer as one message."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls = CallCollector()
    logprobs: list[dict[str, Any]] = []
    for delta in deltas:
        logprobs.extend(delta.logprobs)
        texts.append(delta.text)
        thoughts.append(delta.thought)
        calls.feed(delta.calls)
    valid, invalid = calls.parse()
    thought = "".join(thoughts)
    metadata = end.metadata()
    if logprobs:
        rest = metadata.get("logprobs", {}).get("content", [])
        metadata["logprobs"] = {"content": [*logprobs, *rest]}
    message = AIMessage(
        content="".join(texts),
        additional_kwargs={REASONING: thought} if thought else {},
        response_metadata=metadata,
        tool_calls=valid,
        invalid_tool_calls=invalid,
        usage_metadata=end.usage_metadata(),
    )
    generation = ChatGeneration(
        message=message, generation_info={"finish_reason": end.finish_reason}
    )
    return ChatResult(generations=[generation], llm_output=_llm_output(end))


def _llm_output(end: AnswerEnd) -> dict[str, Any]:
    found: dict[str, Any] = {"model_name": end.model, "model_provider": PROVIDER}
    if end.usage:
        found["token_usage"] = {
            "prompt_tokens": end.usage.prompt,
            "completion_tokens": end.usage.completion,
            "total_tokens": end.usage.prompt + end.usage.completion,
        }
    return found
