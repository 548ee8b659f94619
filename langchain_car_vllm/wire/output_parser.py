"""Structured output: from a schema to the bound parameters and the parser."""

import json
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, get_origin

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers.base import BaseOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.utils.json import parse_json_markdown, parse_partial_json
from pydantic import BaseModel, TypeAdapter, ValidationError

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.printable import encodable_value, format_value
from langchain_car_vllm.wire.answer.constrained_json import (
    check_not_cut,
    misfit_error,
    read_constrained,
    without_fence,
)
from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.raw_output import RawAndParsed
from langchain_car_vllm.wire.request.schema import (
    is_dataclass,
    is_model,
    json_schema,
    wrapper_of,
)
from langchain_car_vllm.wire.request.schema_misfit import validation_error
from langchain_car_vllm.wire.request.tools import openai_tools, tool_name
from langchain_car_vllm.wire.request.typed_dicts import is_typed_dict, typed_dict_model

Method = Literal["json_schema", "function_calling", "json_mode"]
_FORMS = ("text", "json_object", "json_schema")
METHODS: Sequence[str] = ("json_schema", "function_calling", "json_mode")


class _CheckedAtItsEnd(BaseCumulativeTransformOutputParser[Any]):
    """Validates a streamed answer once it is whole: its parts are let through unchecked.

    LangChain has its own way to read parts, and what the last of them gives may be nothing: the
    object of the whole follows where it is another one.
    """

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:  # noqa: A002
        whole: list[Any] = []
        found = None
        for found in super()._transform(_tee(input, whole)):
            yield found
        if (last := self._read_whole(whole)) != found:
            yield last

    async def _atransform(
        self,
        input: AsyncIterator[str | BaseMessage],  # noqa: A002
    ) -> AsyncIterator[Any]:
        whole: list[Any] = []
        found = None
        async for found in super()._atransform(_atee(input, whole)):
            yield found
        if (last := self._read_whole(whole)) != found:
            yield last

    def _read_whole(self, parts: list[Any]) -> Any:
        """Return the object of the whole of it, None for none, or raise what is wrong with it."""
        raise NotImplementedError


class AnswerParser(_CheckedAtItsEnd):
    """Turns the JSON of an answer into the object that was asked for.

    While the answer streams, each part gives the object as far as it is known: a dict, or an
    instance once the pydantic class accepts one.

    Attributes:
        target: The pydantic class or dataclass, None for dicts.
        expected: The JSON schema that a dict must fit, None for any.
        shape: What the schema was made from, which tells the type of the output.
    """

    shape: Any = None
    target: Any = None
    expected: Any = None

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the object, None where the model called a tool instead.

        Raises:
            StructuredOutputError: The answer broke off, or does not fit.
        """
        text = result[0].text
        if not partial:
            if _only_calls(result[0]):
                return None
            check_not_cut(_finish_reason(result[0]), text)
            return self._whole(text)
        try:
            value = parse_json_markdown(text, parser=parse_partial_json)
        except (ValueError, RecursionError):
            return None
        return value if self.target is None else _partial_instance(self.target, value)

    def parse(self, text: str) -> Any:
        """Return the object of a whole answer."""
        return self._whole(text)

    @property
    def OutputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The type of the objects, by which LangServe and others describe a chain's output."""
        is_type = isinstance(self.shape, type) or get_origin(self.shape) is not None
        return _described(self.shape) if is_type else dict[str, Any]

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[Any]:
        """Return a pydantic class that describes the output."""
        if is_typed_dict(self.shape):
            return typed_dict_model(self.shape)
        return super().get_output_schema(config)

    @property
    def _type(self) -> str:
        return "vllm_mlx_answer"

    def _whole(self, text: str) -> Any:
        bare = without_fence(text)
        if self.target is not None:
            try:
                return _instance(self.target, bare)
            except ValueError as error:
                read_constrained(bare)  # what is not JSON at all is told as that
                raise _misfit(self.target, error, text) from error
        value = read_constrained(bare)
        if self.expected is not None and (misfit := validation_error(value, self.expected)):
            raise misfit_error("the schema", misfit, text)
        return encodable_value(value)

    def _read_whole(self, parts: list[Any]) -> Any:
        messages = [part for part in parts if isinstance(part, BaseMessage)]
        if not messages:
            return None
        text = "".join(message.text for message in messages)
        called = any(getattr(message, "tool_call_chunks", ()) for message in messages)
        if called and not text:
            return None
        last = AIMessage(content=text, response_metadata=messages[-1].response_metadata)
        return self.parse_result([ChatGeneration(message=last)])


class InstanceToolParser(_CheckedAtItsEnd, JsonOutputKeyToolsParser):
    """Turns the arguments of a call into an instance of a class, as the JSON that they are.

    Attributes:
        target: The pydantic class or dataclass.
    """

    target: Any

    @property
    def OutputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The type of the objects, by which LangServe and others describe a chain's output."""
        return _described(self.target)

    def _read_whole(self, parts: list[Any]) -> Any:
        chunks = [part for part in parts if isinstance(part, AIMessageChunk)]
        if not chunks:
            return None
        whole = chunks[0] + chunks[1:] if len(chunks) > 1 else chunks[0]
        return self.parse_result([ChatGeneration(message=whole)])

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the instance, None where the tool was not called, or not yet in full.

        Raises:
            StructuredOutputError: The arguments do not fit.
        """
        found = super().parse_result(result, partial=partial)
        if found is None:
            return None
        if partial:
            return _partial_instance(self.target, found)
        try:
            return _instance(self.target, json.dumps(found))
        except ValueError as error:
            raise _misfit(self.target, error, json.dumps(found)) from error


def response_format(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """Return the `response_format` of a `json_schema` request."""
    found = json_schema(schema)
    if strict is None and isinstance(schema, Mapping):
        strict = wrapper_of(schema).get("strict")
    form: dict[str, Any] = {"name": found.get("title") or "answer", "schema": found}
    if strict is not None:
        form["strict"] = strict
    return {"type": "json_schema", "json_schema": form}


def response_format_of(given: Any) -> Any:
    """Return a call's `response_format`: as it is, or made from a class or a schema.

    Raises:
        ConfigurationError: It is nothing that a schema can be made of.
    """
    if given is None or (isinstance(given, Mapping) and given.get("type") in _FORMS):
        return given
    if isinstance(given, Mapping):
        is_schema = bool(given) and given.get("type", "object") == "object"
    else:
        is_schema = callable(given) or get_origin(given) is not None
    if is_schema:
        return response_format(given)
    raise ConfigurationError(
        f"`response_format` cannot be `{format_value(given)}`",
        hint="give a class, a schema of an object, or what the server takes: "
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
    )


def parser_for(schema: Any, method: Method) -> BaseOutputParser[Any]:
    """Return what turns the answer into the object that the schema describes."""
    if method == "function_calling":
        name = tool_name(openai_tools([schema])[0])
        if is_model(schema) or is_dataclass(schema):
            return InstanceToolParser(key_name=name, first_tool_only=True, target=schema)
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    if is_model(schema) or is_dataclass(schema):
        return AnswerParser(target=schema, shape=schema)
    return AnswerParser(expected=None if schema is None else json_schema(schema), shape=schema)


def with_parser(
    bound: Runnable[Any, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return the model followed by its parser, with the raw message beside it where asked for."""
    return RawAndParsed(bound=bound, parser=parser) if include_raw else bound | parser


def check_method(
    method: str, schema: Any, *, strict: bool | None, given: Collection[str] = ()
) -> None:
    """Refuse a combination that cannot work.

    Raises:
        ConfigurationError: The method is unknown, or wants what is missing.
    """
    if method not in METHODS:
        raise ConfigurationError(
            f"`{method}` is not a method for structured output", hint=f"use {', '.join(METHODS)}"
        )
    if schema is None and method != "json_mode":
        raise ConfigurationError(f"`schema` is needed for the method `{method}`")
    if strict is not None and method == "json_mode":
        raise ConfigurationError("`strict` has no meaning for the method `json_mode`")
    for name in ("tools", "tool_choice"):
        if name in given and method == "function_calling":
            raise ConfigurationError(
                f"`{name}` cannot be given for the method `function_calling`, which forces a tool "
                "of its own",
                hint="use the method `json_schema`, which may call tools before it answers",
            )


def _finish_reason(generation: Generation) -> str | None:
    message = generation.message if isinstance(generation, ChatGeneration) else None
    return message.response_metadata.get("finish_reason") if message is not None else None


def _only_calls(generation: Generation) -> bool:
    message = generation.message if isinstance(generation, ChatGeneration) else None
    return not generation.text and bool(getattr(message, "tool_calls", ()))


def _instance(kind: Any, text: str) -> Any:
    if is_dataclass(kind):
        return TypeAdapter(kind).validate_json(text)
    if issubclass(kind, BaseModel):
        return kind.model_validate_json(text)
    return kind.parse_raw(text)  # of pydantic's version 1


def _partial_instance(kind: Any, value: Any) -> Any:
    """Return the instance for a part of an answer, None where it cannot be made yet.

    A validator may raise anything for a value that has begun: the `0` of `0.5` divides nothing.
    """
    try:
        return _instance(kind, json.dumps(value))
    except Exception:  # noqa: BLE001 - the whole answer is judged at its end
        return None


def _described(kind: Any) -> Any:
    """Return a type that pydantic can describe: not a class of its version 1."""
    return Any if is_model(kind) and not issubclass(kind, BaseModel) else kind


def _misfit(kind: Any, error: ValueError, answer: str) -> StructuredOutputError:
    return misfit_error(f"`{getattr(kind, '__name__', kind)}`", _first(error), answer)


def _first(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else found["msg"]


def _tee(parts: Iterator[Any], kept: list[Any]) -> Iterator[Any]:
    for part in parts:
        kept.append(part)
        yield part


async def _atee(parts: AsyncIterator[Any], kept: list[Any]) -> AsyncIterator[Any]:
    async for part in parts:
        kept.append(part)
        yield part
