"""A forced tool choice, which the server only asks for in the prompt, as a guarantee.

First the model's own way: the request goes out byte for byte as an unforced one, so the server's
prefix cache holds, thinking stays on and the call is in the model's own format. Only if no valid
call comes back, one request constrained by a grammar made of the tools follows. Other servers than
vllm-mlx may enforce the choice by themselves, so they are told it.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_car_vllm.errors import ForcedToolCallError
from langchain_car_vllm.support.version_numbers import is_at_least
from langchain_car_vllm.wire.answer.call_collector import CallCollector
from langchain_car_vllm.wire.answer.call_parts import whole_calls
from langchain_car_vllm.wire.answer.constrained_json import (
    check_not_cut,
    read_constrained,
    unconstrained_error,
)
from langchain_car_vllm.wire.answer.held_text import CollectingFilter
from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.errors import (
    AnswerError,
    IncompleteAnswerError,
    InvalidRequestError,
    ServerFailedError,
    StructuredOutputError,
)
from langchain_car_vllm.wire.exchange.attempt import Attempt, Body, Names
from langchain_car_vllm.wire.exchange.exchange import Exchange
from langchain_car_vllm.wire.reasoning import without_thinking
from langchain_car_vllm.wire.request.grammar import (
    grammar_schema,
    reference_to,
    refers_to_root,
)
from langchain_car_vllm.wire.request.schema import Schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import tool_name

METHODS: Sequence[str] = ("auto", "native", "grammar")
_BAD_REQUEST, _BUSY = 400, 503
_FIRST_WITH_GRAMMAR = (0, 5, 0)
_WISH = "It calls a tool that helps to answer: its name and its arguments."


class ForcedCall(Exchange):
    """A call that must end in a tool call.

    Args:
        body: The body of an unforced request, with the tools.
        tools: The tools that may be called, all of them or the named one, under the user's names.
        single: Whether exactly one call is wanted.
        methods: The ways to go, in order.
        filters: What a native answer passes through before it is judged.
        names: The user's names of tools that went out under another one.
        choice: The choice as a server is told it that may enforce it, None for vllm-mlx.
        version: The server's version, for the error.
        attached: Whether somebody else runs the server, which then may be any server.
    """

    def __init__(
        self,
        body: Body,
        tools: Sequence[dict[str, Any]],
        *,
        single: bool,
        methods: Sequence[Literal["native", "grammar"]],
        filters: Sequence[Filter] = (),
        names: Names = None,
        choice: Any = None,
        version: str | None = None,
        attached: bool = False,
    ) -> None:
        super().__init__(body, filters, names, attached=attached)
        self._tools = {tool_name(tool): tool["function"] for tool in tools}
        self._single = single
        self._methods = methods
        self._choice = choice
        self._version = version
        self._used = ""
        self._refusal: AnswerError | None = None

    def attempts(self) -> Iterator[Attempt]:
        """Yield the native request, then the constrained one where no valid call came."""
        for method in self._methods:
            self._used = method
            attempt = yield from (self._native() if method == "native" else self._grammar())
            if attempt.called:
                return
        raise ForcedToolCallError(
            self._reason(f"the model called none of {', '.join(self._tools)} although it had to"),
            hint='allow the grammar with `tool_choice_method="auto"`, or use a larger model',
        )

    def _native(self) -> Generator[Attempt, None, Attempt]:
        body = self.body if self._choice is None else {**self.body, "tool_choice": self._choice}
        judge = NativeCallFilter(self._tools, single=self._single)
        filters = [*self._filters, judge]
        return self._try(body, filters, promotes=False)

    def _has_other_way(self, error: AnswerError) -> bool:
        """Go on with the grammar where a server does not take tools, or not the choice."""
        may_go_on = self._used == "native" and "grammar" in self._methods
        if not (may_go_on and self._choice is not None and _is_refusal(error)):
            return False
        self._refusal = error
        return True

    def _grammar(self) -> Generator[Attempt, None, Attempt]:
        schema = calls_schema(self._tools, single=self._single)
        body = constrain_to_calls(self.body, schema)
        return self._try(body, [GrammarCallFilter(self._tools)])

    def _translate(self, error: AnswerError) -> Exception:
        return self._explain(error) if self._used == "grammar" else error

    def _explain(self, error: AnswerError) -> Exception:
        if isinstance(error, StructuredOutputError):
            return ForcedToolCallError(self._reason(error.message), hint=error.hint)
        if not _is_refusal(error):
            return error
        if error.status == _BAD_REQUEST and self._choice is None:
            error.hint = "simplify the schema of the tools"
            return error
        hint = "use a server that constrains answers, such as vllm-mlx, or a larger model"
        if self._choice is None and not is_at_least(self._version or "", _FIRST_WITH_GRAMMAR):
            hint = "constrained answers need vllm-mlx 0.5 or newer"
        if "JSON" in error.message:
            hint = "raise `max_tokens`: the call may have been cut off"
        version = f" (vllm-mlx {self._version})" if self._version else ""
        return ForcedToolCallError(
            self._reason(
                f"the server{version} could not constrain the answer to a call: {error.message}"
            ),
            hint=hint,
        )

    def _reason(self, message: str) -> str:
        """Return the reason for a failure, with that of the native request where it failed too."""
        return (
            message if self._refusal is None else f"{message}; before that: {self._refusal.message}"
        )

    def _extra(self) -> dict[str, Any]:
        return {"tool_choice_method": self._used}


def _is_refusal(error: AnswerError) -> bool:
    """Whether the server took the request and would not or could not serve it."""
    refused = isinstance(error, InvalidRequestError | ServerFailedError)
    return refused and not isinstance(error, IncompleteAnswerError) and error.status != _BUSY


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

    def end(self, finish_reason: str | None) -> list[Delta]:  # noqa: ARG002
        """Return the answer where it holds valid calls only, and at least one."""
        valid, invalid = self._calls.parse(whole=True)
        fits = all(_misfit(self._tools, call["name"], call["args"]) is None for call in valid)
        if not valid or invalid or not fits:
            return []
        chunks = self._calls.chunks()
        return [Delta(self.text, calls=tuple(chunks[:1] if self._single else chunks))]


class GrammarCallFilter(CollectingFilter):
    """Turns what the grammar made the model write into tool calls."""

    def __init__(self, tools: Mapping[str, dict[str, Any]]) -> None:
        super().__init__()
        self._tools = tools

    def end(self, finish_reason: str | None) -> list[Delta]:
        """Return the calls.

        Raises:
            ForcedToolCallError: It does not fit.
            StructuredOutputError: It is not whole, or not JSON.
        """
        check_not_cut(finish_reason, self.text)
        value = read_constrained(self.text, "call")
        try:
            entries = value if isinstance(value, list) else [value]
            calls = [(str(entry["name"]), dict(entry["arguments"])) for entry in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise unconstrained_error(self.text, "a tool call") from error
        for name, args in calls:
            if misfit := _misfit(self._tools, name, args):
                raise ForcedToolCallError(f"the arguments of `{name}` do not fit: {misfit}")
        if not calls:
            raise ForcedToolCallError("the constrained answer contains no tool call")
        return [Delta(calls=tuple(whole_calls(calls)))]


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
                "arguments": reference_to(name) if name in apart else part,
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
    form = {"name": "tool_call", "description": _WISH, "schema": schema, "strict": True}
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
