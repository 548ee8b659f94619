"""A forced tool choice, which the server only asks for in the prompt, as a guarantee.

First the model's own way: the request goes out byte for byte as an unforced one, so the server's
prefix cache holds, thinking stays on and the call is in the model's own format. Only if no valid
call comes back, one request constrained by a grammar made of the tools follows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.messages.tool import ToolCallChunk

from langchain_car_vllm.errors import ForcedToolCallError
from langchain_car_vllm.wire.answer.call_parts import new_call_id
from langchain_car_vllm.wire.answer.collector import CollectingFilter, check_not_cut
from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.answer.result import CallCollector
from langchain_car_vllm.wire.errors import (
    AnswerError,
    IncompleteAnswerError,
    InvalidRequestError,
    ServerFailedError,
    StructuredOutputError,
)
from langchain_car_vllm.wire.exchange.exchange import Attempt, Body, Exchange
from langchain_car_vllm.wire.reasoning import without_thinking
from langchain_car_vllm.wire.request.schema import (
    Schema,
    grammar_schema,
    refers_to_root,
    validation_error,
)
from langchain_car_vllm.wire.request.tools import tool_name

ChoiceMethod = Literal["auto", "native", "grammar"]
METHODS: Sequence[str] = ("auto", "native", "grammar")
_BUSY = 503
_WISH = "It calls a tool that helps to answer: its name and its arguments."


class ForcedCall(Exchange):
    """A call that must end in a tool call.

    Args:
        body: The body of an unforced request, with the tools.
        tools: The tools that may be called, all of them or the named one.
        single: Whether exactly one call is wanted.
        methods: The ways to go, in order.
        filters: What a native answer passes through before it is judged.
        version: The server's version, for the error.
    """

    def __init__(
        self,
        body: Body,
        tools: Sequence[dict[str, Any]],
        *,
        single: bool,
        methods: Sequence[Literal["native", "grammar"]],
        filters: Sequence[Filter] = (),
        version: str | None = None,
    ) -> None:
        super().__init__(body, filters)
        self._tools = {tool_name(tool): tool["function"] for tool in tools}
        self._single = single
        self._methods = methods
        self._version = version
        self._used = ""

    def attempts(self) -> Iterator[Attempt]:
        """Yield the native request, then the constrained one where no valid call came."""
        for method in self._methods:
            self._used = method
            attempt = self._native() if method == "native" else self._grammar()
            yield attempt
            if attempt.called:
                return
        raise ForcedToolCallError(
            f"the model called none of {', '.join(self._tools)} although it had to",
            hint='allow the grammar with `tool_choice_method="auto"`, or use a larger model',
        )

    def _native(self) -> Attempt:
        attempt = self._attempt(
            self.body, [*self._filters, NativeCallFilter(self._tools, single=self._single)]
        )
        attempt.promotes = False
        return attempt

    def _grammar(self) -> Attempt:
        schema = calls_schema(self._tools, single=self._single)
        body = constrain_to_calls(self.body, schema)
        attempt = self._attempt(body, [GrammarCallFilter(self._tools)])
        attempt.failed = self._refused
        return attempt

    def _refused(self, error: AnswerError) -> Exception:
        refused = isinstance(error, InvalidRequestError | ServerFailedError)
        if not refused or isinstance(error, IncompleteAnswerError) or error.status == _BUSY:
            return error
        version = f" (vllm-mlx {self._version})" if self._version else ""
        hint = "constrained answers need vllm-mlx 0.5 or newer"
        if "JSON" in error.message:
            hint = "raise `max_tokens`: the call may have been cut off"
        return ForcedToolCallError(
            f"the server{version} could not constrain the answer to a tool call: {error.message}",
            hint=hint,
        )

    def _extra(self) -> dict[str, Any]:
        return {"tool_choice_method": self._used}


class NativeCallFilter(CollectingFilter):
    """Holds everything but the reasoning back until it is clear whether the calls are valid.

    A call cannot be taken back once it went out, so it waits for its last argument.

    Args:
        tools: The functions that may be called, by name.
        single: Whether all calls but the first are dropped.
    """

    def __init__(self, tools: Mapping[str, dict[str, Any]], *, single: bool = False) -> None:
        super().__init__()
        self._tools = tools
        self._single = single
        self._calls = CallCollector()

    def feed(self, delta: Delta) -> Delta | None:
        """Collect text and calls, and let the reasoning pass."""
        self._calls.feed(delta.calls)
        return super().feed(delta)

    def end(self, finish_reason: str | None) -> Delta | None:  # noqa: ARG002
        """Return the answer where it holds valid calls only, and at least one."""
        valid, invalid = self._calls.parse(whole=True)
        fits = all(_misfit(self._tools, call["name"], call["args"]) is None for call in valid)
        if not valid or invalid or not fits:
            return None
        chunks = self._calls.chunks()
        return Delta(self.text, calls=tuple(chunks[:1] if self._single else chunks))


class GrammarCallFilter(CollectingFilter):
    """Turns what the grammar made the model write into tool calls.

    Args:
        tools: The functions that may be called, by name.
    """

    def __init__(self, tools: Mapping[str, dict[str, Any]]) -> None:
        super().__init__()
        self._tools = tools

    def end(self, finish_reason: str | None) -> Delta | None:
        """Return the calls.

        Raises:
            ForcedToolCallError: It is not whole, or does not fit.
        """
        try:
            check_not_cut(finish_reason, self.text)
        except StructuredOutputError as error:
            raise ForcedToolCallError(error.message, hint=error.hint) from error
        try:
            value = json.loads(self.text)
            entries = value if isinstance(value, list) else [value]
            calls = [(str(entry["name"]), dict(entry["arguments"])) for entry in entries]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ForcedToolCallError(
                "the constrained answer is no whole list of tool calls",
                hint="raise `max_tokens`: it may have been cut off",
            ) from error
        for name, args in calls:
            if misfit := _misfit(self._tools, name, args):
                raise ForcedToolCallError(f"the arguments of `{name}` do not fit: {misfit}")
        if not calls:
            raise ForcedToolCallError("the constrained answer holds no tool call")
        return Delta(
            calls=tuple(
                ToolCallChunk(
                    name=name,
                    args=json.dumps(args, ensure_ascii=False),
                    id=new_call_id(),
                    index=index,
                    type="tool_call_chunk",
                )
                for index, (name, args) in enumerate(calls)
            )
        )


def calls_schema(tools: Mapping[str, dict[str, Any]], *, single: bool) -> Schema:
    """Return the schema of one call, or of a list of at least one and at most one for each tool."""
    parts = {name: _parameters(function) for name, function in tools.items()}
    apart = {name: part for name, part in parts.items() if refers_to_root(part)}
    forms = [
        {
            "type": "object",
            "description": str(tools[name].get("description") or ""),
            "properties": {
                "name": {"const": name},
                "arguments": {"$ref": f"#/$defs/{name}"} if name in apart else part,
            },
            "required": ["name", "arguments"],
        }
        for name, part in parts.items()
    ]
    form = forms[0] if len(forms) == 1 else {"anyOf": forms}
    if single:
        return grammar_schema(form, apart)
    return grammar_schema(
        {"type": "array", "items": form, "minItems": 1, "maxItems": len(forms)}, apart
    )


def constrain_to_calls(body: Body, schema: Schema) -> Body:
    """Return a body that asks for tool calls as JSON, without any tools."""
    left = {k: v for k, v in body.items() if k not in ("tools", "tool_choice", "stop")}
    left = without_thinking(left)
    form = {"name": "tool call", "description": _WISH, "schema": schema, "strict": True}
    return {**left, "response_format": {"type": "json_schema", "json_schema": form}}


def has_tool_history(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the conversation holds tool calls or their results."""
    return any(m.get("role") == "tool" or m.get("tool_calls") for m in messages)


def _parameters(function: Mapping[str, Any]) -> Schema:
    return function.get("parameters") or {"type": "object", "properties": {}}


def _misfit(tools: Mapping[str, dict[str, Any]], name: str, args: dict[str, Any]) -> str | None:
    if name not in tools:
        return f"no tool is named `{name}`"
    return validation_error(args, _parameters(tools[name]), unique=False)
