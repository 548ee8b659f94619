"""Structured output: from a schema to the bound parameters and the parser."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import BaseOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import (
    convert_to_json_schema,
    convert_to_openai_tool,
)
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_car_vllm.errors import ConfigurationError

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS: Sequence[str] = ("json_schema", "function_calling", "json_mode")


def response_format(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """Return the `response_format` of a `json_schema` request."""
    converted = convert_to_json_schema(schema, strict=strict)
    form: dict[str, Any] = {"name": converted.get("title") or "answer", "schema": converted}
    if strict is not None:
        form["strict"] = strict
    return {"type": "json_schema", "json_schema": form}


def parser_for(schema: Any, method: Method) -> BaseOutputParser[Any]:
    """Return what turns the answer into the object that the schema describes."""
    model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if method == "function_calling":
        if model is not None:
            return PydanticToolsParser(tools=[model], first_tool_only=True)
        name = convert_to_openai_tool(schema)["function"]["name"]
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    if model is not None:
        return PydanticOutputParser(pydantic_object=model)
    return JsonOutputParser()


def with_parser(
    bound: Runnable[Any, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return the model followed by its parser, with the raw message beside it where asked for."""
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def check_method(method: str, schema: Any, *, strict: bool | None) -> None:
    """Refuse a combination that cannot work.

    Raises:
        ConfigurationError: The method is unknown, or wants what is missing.
    """
    if method not in METHODS:
        raise ConfigurationError(
            f"`{method}` is no method for structured output", hint=f"use {', '.join(METHODS)}"
        )
    if schema is None and method != "json_mode":
        raise ConfigurationError(f"`schema` is needed for the method `{method}`")
    if strict is not None and method == "json_mode":
        raise ConfigurationError("`strict` has no meaning for the method `json_mode`")
