"""Tools together with a `response_format`, which the server refuses, in two steps.

Tool steps go out exactly like plain tool calling. The answer that ends without a call is the draft;
if it does not fit the schema by itself, one constrained request turns it into the object. So a
thinking agent thinks, calls tools in its own format, and still ends in valid JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_car_vllm.wire.answer.constrained_json import (
    check_not_cut,
    misfit_error,
    read_constrained,
    without_fence,
)
from langchain_car_vllm.wire.answer.held_text import CollectingFilter
from langchain_car_vllm.wire.answer.reader import Delta, Filter
from langchain_car_vllm.wire.errors import AnswerError, InvalidRequestError, StructuredOutputError
from langchain_car_vllm.wire.exchange.attempt import Attempt, Body, Names
from langchain_car_vllm.wire.exchange.exchange import Exchange
from langchain_car_vllm.wire.reasoning import REASONING, without_thinking
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.schema import Schema
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import server_name

_WISH = "Give this answer as JSON."


class Structured(Exchange):
    """One request for JSON that fits a schema."""

    def __init__(
        self,
        body: Body,
        form: Mapping[str, Any],
        filters: Sequence[Filter] = (),
        *,
        attached: bool = False,
    ) -> None:
        asked = {**without_thinking(body), "response_format": grammar_form(form)}
        super().__init__(asked, filters, attached=attached)

    def attempts(self) -> Iterator[Attempt]:
        """Yield the one request."""
        attempt = yield from self._try(self.body, self._filters)
        check_not_cut(attempt.answer.finish_reason, attempt.text)
        if attempt.done:
            _check_not_stopped(attempt.text)

    def _translate(self, error: AnswerError) -> Exception:
        return _output_error(error)


class ToolsThenSchema(Exchange):
    """A step of an agent that ends in a tool call or in JSON that fits a schema."""

    def __init__(
        self,
        body: Body,
        form: Mapping[str, Any],
        filters: Sequence[Filter] = (),
        names: Names = None,
        *,
        attached: bool = False,
    ) -> None:
        super().__init__(body, filters, names, attached=attached)
        self._form = form
        self._schema = schema_of(form)
        self._used = "native"

    def attempts(self) -> Iterator[Attempt]:
        """Yield the plain request, then the constrained one where it brought no call."""
        draft = DraftFilter(self._schema)
        first = yield from self._try(self.body, [*self._filters, draft], promotes=False)
        if first.called or draft.fits:
            return
        self._used = "grammar"
        body = self._constrain(first, draft)
        filters = [SchemaFilter(self._schema)]
        yield from self._try(body, filters, promotes=False)

    def _constrain(self, first: Attempt, draft: "DraftFilter") -> Body:
        body = {k: v for k, v in self.body.items() if k not in ("tools", "tool_choice", "stop")}
        messages = list(body["messages"])
        if said := draft.text.strip() or first.thought:
            answer = {"role": "assistant", "content": said}
            if first.thought:
                answer[REASONING] = first.thought
            messages += [answer, {"role": "user", "content": _WISH}]
        form = grammar_form(self._form)
        return {**without_thinking(body), "messages": messages, "response_format": form}

    def _translate(self, error: AnswerError) -> Exception:
        return _output_error(error) if self._used == "grammar" else error

    def _extra(self) -> dict[str, Any]:
        return {"structured_output_method": self._used}


class DraftFilter(CollectingFilter):
    """Holds the text of a step back until it is clear that the step calls a tool, or fits.

    Attributes:
        fits: Whether the text was JSON that fits.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._schema = schema
        self._called = False
        self.fits = False

    def feed(self, delta: Delta) -> Delta | None:
        """Let reasoning and calls pass, and the text of a step that calls."""
        if not (self._called or delta.calls):
            return super().feed(delta)
        self._called = True
        text = self.text + delta.text
        self._texts.clear()
        if not (text or delta.thought or delta.calls):
            return None
        return Delta(text, delta.thought, delta.calls)

    def end(self, finish_reason: str | None) -> list[Delta]:  # noqa: ARG002
        """Return the text where it fits the schema as it is."""
        if self._called:
            return []
        bare = without_fence(self.text)
        try:
            misfit = validation_error(json.loads(bare), self._schema, unique=False)
        except (ValueError, RecursionError):
            return []
        self.fits = misfit is None
        return [Delta(bare)] if self.fits else []


class SchemaFilter(CollectingFilter):
    """Holds a constrained answer back until it is validated against the schema as it was meant."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._schema = schema

    def end(self, finish_reason: str | None) -> list[Delta]:
        """Return the text.

        Raises:
            StructuredOutputError: It is not JSON, or does not fit.
        """
        super().end(finish_reason)
        value = read_constrained(self.text)
        if misfit := validation_error(value, self._schema, unique=False):
            raise misfit_error("the schema", misfit, self.text)
        return [Delta(without_fence(self.text))]


def _check_not_stopped(text: str) -> None:
    """Refuse JSON that a stop text cut off.

    Raises:
        StructuredOutputError: It is not whole.
    """
    try:
        json.loads(without_fence(text))
    except (ValueError, RecursionError) as error:
        raise StructuredOutputError(
            "a `stop` text came before the end of the JSON, and cut it off",
            answer=text,
            hint="pass none here: `with_structured_output(..., stop=[])`",
        ) from error


def schema_of(form: Mapping[str, Any]) -> Schema:
    """Return the schema of a `response_format`; any object for JSON mode."""
    if form.get("type") != "json_schema":
        return {"type": "object"}
    inner = form.get("json_schema")
    found = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(found, dict):
        raise InvalidRequestError(
            "`response_format` has no schema",
            hint='give {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
        )
    return found


def grammar_form(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `response_format` whose schema the server's grammar takes.

    Other servers take such names only as tools have, which a title need not be.
    """
    if form.get("type") != "json_schema":
        return dict(form)
    schema = grammar_schema(schema_of(form))
    name = server_name(str(form["json_schema"].get("name") or "answer"))
    inner = {**form["json_schema"], "name": name, "schema": schema}
    return {"type": "json_schema", "json_schema": inner}


def _output_error(error: AnswerError) -> Exception:
    if isinstance(error, InvalidRequestError) and error.status == 422:  # noqa: PLR2004
        return StructuredOutputError(
            error.message, hint="raise `max_tokens`, or simplify the schema"
        )
    return error
