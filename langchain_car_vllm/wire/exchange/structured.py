"""Tools together with a `response_format`, which the server refuses, in two steps.

Tool steps go out exactly like plain tool calling. The answer that ends without a call is the draft;
if it does not fit the schema by itself, one constrained request turns it into the object. So a
thinking agent thinks, calls tools in its own format, and still ends in valid JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_car_vllm.wire.answer.reader import Answer, Delta, Filter
from langchain_car_vllm.wire.errors import (
    AnswerError,
    InvalidRequestError,
    StructuredOutputError,
)
from langchain_car_vllm.wire.exchange.exchange import Attempt, Body, Exchange
from langchain_car_vllm.wire.reasoning import REASONING, without_thinking
from langchain_car_vllm.wire.request.schema import Schema, complaint, digested

_WISH = "Give this answer as JSON."


class Structured(Exchange):
    """One request for JSON that fits a schema.

    Args:
        body: The body, without its `response_format`.
        form: The `response_format`.
        filters: What the answer passes through.
    """

    def __init__(self, body: Body, form: Mapping[str, Any], filters: Sequence[Filter] = ()) -> None:
        asked = {**without_thinking(body), "response_format": digested_form(form)}
        super().__init__(asked, filters)

    def attempts(self) -> Iterator[Attempt]:
        """Yield the one request."""
        for attempt in super().attempts():
            attempt.failed = _unfit
            yield attempt
            check_whole(attempt.answer, attempt.text)


class ToolsThenSchema(Exchange):
    """A step of an agent that ends in a tool call or in JSON that fits a schema.

    Args:
        body: The body of a plain request with the tools.
        form: The `response_format`.
        filters: What the draft passes through.
    """

    def __init__(self, body: Body, form: Mapping[str, Any], filters: Sequence[Filter] = ()) -> None:
        super().__init__(body, filters)
        self._form = form
        self._schema = schema_of(form)
        self._used = "native"

    def attempts(self) -> Iterator[Attempt]:
        """Yield the plain request, then the constrained one where it brought no call."""
        draft = Draft(self._schema)
        first = self._attempt(self.body, [*self._filters, draft])
        first.promotes = False
        yield first
        if first.called or draft.fits:
            return
        self._used = "grammar"
        fitting = Fitting(self._schema)
        second = self._attempt(self._constrained(first, draft), [fitting])
        fitting.answer = second.answer
        second.promotes = False
        second.failed = _unfit
        yield second

    def _constrained(self, first: Attempt, draft: "Draft") -> Body:
        body = {k: v for k, v in self.body.items() if k not in ("tools", "tool_choice", "stop")}
        messages = list(body["messages"])
        if said := draft.text.strip() or first.thought:
            answer = {"role": "assistant", "content": said}
            if first.thought:
                answer[REASONING] = first.thought
            messages += [answer, {"role": "user", "content": _WISH}]
        form = digested_form(self._form)
        return {**without_thinking(body), "messages": messages, "response_format": form}

    def _extra(self) -> dict[str, Any]:
        return {"structured_output_method": self._used}


class Draft:
    """Holds the text of a step back until it is clear that the step calls a tool, or fits.

    Args:
        schema: What the text would have to fit.

    Attributes:
        text: What was held back.
        fits: Whether the text was JSON that fits.
    """

    done = False

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._called = False
        self.text = ""
        self.fits = False

    def feed(self, delta: Delta) -> Delta | None:
        """Let reasoning and calls pass, and the text of a step that calls."""
        self._called = self._called or bool(delta.calls)
        self.text += delta.text
        text = self._taken() if self._called else ""
        if not (text or delta.thought or delta.calls):
            return None
        return Delta(text, delta.thought, delta.calls)

    def end(self) -> Delta | None:
        """Return the text where it fits the schema as it is."""
        try:
            self.fits = complaint(json.loads(self.text), self._schema, unique=False) is None
        except (ValueError, RecursionError):
            self.fits = False
        return Delta(self._taken()) if self.fits and not self._called else None

    def _taken(self) -> str:
        text, self.text = self.text, ""
        return text


class Fitting:
    """Holds a constrained answer back until it is validated against the schema as it was meant.

    Args:
        schema: The original schema.

    Attributes:
        answer: The answer that the text is of.
    """

    done = False
    answer: Answer | None = None

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._text = ""

    def feed(self, delta: Delta) -> Delta | None:
        """Collect the text."""
        self._text += delta.text
        return None

    def end(self) -> Delta:
        """Return the text.

        Raises:
            StructuredOutputError: It is no JSON, or does not fit.
        """
        if self.answer is not None:
            check_whole(self.answer, self._text)
        check_fits(self._text, self._schema)
        return Delta(self._text)


def check_fits(text: str, schema: Schema) -> Any:
    """Return the JSON value of a text.

    Raises:
        StructuredOutputError: It is no JSON, or does not fit the schema.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StructuredOutputError(
            "the answer is no whole JSON",
            answer=text,
            hint="raise `max_tokens`: it may have been cut off",
        ) from error
    if misfit := complaint(value, schema, unique=False):
        raise StructuredOutputError(f"the answer does not fit the schema: {misfit}", answer=text)
    return value


def check_whole(answer: Answer, text: str) -> None:
    """Refuse a structured answer that ran out of tokens: the server closes its brackets.

    Raises:
        StructuredOutputError: It was cut off.
    """
    if answer.finish_reason == "length":
        raise StructuredOutputError(
            "the answer was cut off before its end: `max_tokens` is too small",
            answer=text,
            hint="raise `max_tokens`",
        )


def schema_of(form: Mapping[str, Any]) -> Schema:
    """Return the schema of a `response_format`; any object for JSON mode."""
    if form.get("type") != "json_schema":
        return {"type": "object"}
    found = (form.get("json_schema") or {}).get("schema")
    if not isinstance(found, dict):
        raise InvalidRequestError(
            "`response_format` has no schema",
            hint='give {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
        )
    return found


def digested_form(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `response_format` whose schema the server's grammar takes."""
    if form.get("type") != "json_schema":
        return dict(form)
    inner = {"name": "answer", **form["json_schema"], "schema": digested(schema_of(form))}
    return {"type": "json_schema", "json_schema": inner}


def _unfit(error: AnswerError) -> Exception:
    if isinstance(error, InvalidRequestError) and error.status == 422:  # noqa: PLR2004
        return StructuredOutputError(
            error.message, hint="raise `max_tokens`, or simplify the schema"
        )
    return error
