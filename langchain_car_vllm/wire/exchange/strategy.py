"""From a call's parameters to the exchange that answers it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.printable import format_value
from langchain_car_vllm.support.user_warnings import warn_user_once
from langchain_car_vllm.wire.answer.reader import Filter
from langchain_car_vllm.wire.answer.stop_texts import StopFilter
from langchain_car_vllm.wire.answer.text_calls import TextCallFilter
from langchain_car_vllm.wire.answer.think_tags import ThinkTagFilter
from langchain_car_vllm.wire.answer.written_calls import CallNames
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.exchange.attempt import Body
from langchain_car_vllm.wire.exchange.exchange import NO_BIAS, Exchange
from langchain_car_vllm.wire.exchange.forced_call import METHODS, ForcedCall, has_tool_history
from langchain_car_vllm.wire.exchange.structured import Structured, ToolsThenSchema
from langchain_car_vllm.wire.reasoning import reasoning_parameters, takes_budget
from langchain_car_vllm.wire.request.parameter_values import logprob_fields
from langchain_car_vllm.wire.request.parameters import SAMPLING, SERVERS, warn_once
from langchain_car_vllm.wire.request.tools import (
    server_name,
    server_tools,
    takes_no_arguments,
    tool_aliases,
    tool_name,
)
from langchain_car_vllm.wire.request.turns import order_turns

# The server ends a stream without a word when its time is up: ours is to be up before.
_GRACE_SECONDS = 5.0
_RESERVED = ("model", "messages", "stream", "stream_options")


def exchange_for(
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    stop: Sequence[str] | None,
    given: Mapping[str, Any],
    *,
    streamed: bool,
) -> Exchange:
    """Return the exchange for a call.

    Raises:
        ConfigurationError: Parameters contradict each other.
    """
    tools = given.get("tools") or []
    choice = given.get("tool_choice")
    form = given.get("response_format")
    stops = [text for text in stop or () if text]
    body = body_for(endpoint, messages, given)
    told = _stops_by_itself(endpoint, given)
    if stops and told:
        body["stop"] = stops
    if _streams(endpoint, given, wanted=streamed or bool(stops)):
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    attached = not endpoint.managed
    cutter: list[Filter] = [StopFilter(stops, told=told)] if stops else []
    opening: list[Filter] = [ThinkTagFilter()] if attached and endpoint.parsers is None else []
    if not tools or choice == "none":
        if _constrains(form):
            return Structured(body, form, [*opening, *cutter], attached=attached)
        return Exchange(body, [*opening, *cutter], attached=attached)
    names = tool_aliases(tools)
    filters: list[Filter] = [*opening, TextCallFilter(_call_names(tools, names)), *cutter]
    if choice in (None, "auto"):
        if _constrains(form):
            return ToolsThenSchema(body, form, filters, names, attached=attached)
        return Exchange(body, filters, names, attached=attached)
    return ForcedCall(
        body,
        _select(tools, choice),
        single=choice != "required" or given.get("parallel_tool_calls") is False,
        methods=_methods(endpoint, messages, tools, given),
        filters=filters,
        names=names,
        choice=None if _is_vllm_mlx(endpoint) else _server_choice(choice),
        version=endpoint.version,
        attached=attached,
    )


def body_for(endpoint: Endpoint, messages: list[dict[str, Any]], given: Mapping[str, Any]) -> Body:
    """Return the JSON body of a request without `response_format`.

    A forced tool choice is not told to the server: it would only change the prompt.
    """
    messages = order_turns(messages, endpoint.turn_order)
    body: Body = {"model": endpoint.served_model, "messages": messages}
    body.update({name: given[name] for name in SAMPLING if given.get(name) is not None})
    if (timeout := given.get("timeout")) is not None:
        body["timeout"] = timeout + _GRACE_SECONDS
    if tools := given.get("tools"):
        body["tools"] = server_tools(tools)
        if given.get("tool_choice") == "none":
            body["tool_choice"] = "none"
    body.update(logprob_fields(given))
    body.update(reasoning_parameters(given.get("reasoning"), _thinking_budget(endpoint, given)))
    template = {**_kept_thoughts(endpoint), **body.get("chat_template_kwargs", {})}
    body.update({name: given[name] for name in SERVERS if given.get(name) is not None})
    if template := {**template, **(given.get("chat_template_kwargs") or {})}:
        body["chat_template_kwargs"] = template
    if endpoint.engine == "batched" and not endpoint.managed:
        body.setdefault("logit_bias", NO_BIAS)
    body.update(_extra_fields(given.get("extra_body") or {}))
    return body


def _extra_fields(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of `extra_body`.

    Several answers are not asked for: each would take its time, and one is read.

    Raises:
        InvalidRequestError: One of them is set by the call.
    """
    for name in _RESERVED:
        if name in given:
            raise InvalidRequestError(f"`{name}` cannot be set in `extra_body`")
    if "n" in given:
        warn_once("n")
    return {name: value for name, value in given.items() if name != "n"}


def _thinking_budget(endpoint: Endpoint, given: Mapping[str, Any]) -> int | None:
    """Return how many tokens a thought may have, None where nothing can hold the model to it."""
    budget: int | None = given.get("thinking_budget")
    parsers = endpoint.parsers if endpoint.managed else None
    if budget is None or parsers is None or takes_budget(parsers.reasoning):
        return budget
    warn_user_once(
        f"`thinking_budget` has no effect on `{endpoint.served_model}`: the server can only end "
        "thinking that is inside `<think>`; `max_tokens` limits thinking and answer together"
    )
    return None


def _kept_thoughts(endpoint: Endpoint) -> dict[str, bool]:
    """Return the wish to keep earlier thoughts in the prompt, for templates that know it.

    Without it a new user turn rewrites the history, and the prefix cache of a hybrid model is lost.
    Templates that do not know the word pass over it.
    """
    thinks = endpoint.parsers is not None and endpoint.parsers.reasoning is not None
    return {"preserve_thinking": True} if thinks else {}


def _constrains(form: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a `response_format` asks for JSON.

    Raises:
        ConfigurationError: It is none the server knows.
    """
    if form is None or form == {"type": "text"}:
        return False
    if not isinstance(form, Mapping) or form.get("type") not in ("json_schema", "json_object"):
        raise ConfigurationError(
            f"`response_format` cannot be `{format_value(form)}`",
            hint="use `with_structured_output(...)`, which takes classes and schemas",
        )
    return True


def _streams(endpoint: Endpoint, given: Mapping[str, Any], *, wanted: bool) -> bool:
    """Whether the server is asked to stream.

    The simple engine goes on with a plain request after its client has gone, so it always streams.
    Parsers that lose streamed tool calls never stream with tools, unless the user insists.
    """
    kept = given.get("streams_tool_calls")
    if given.get("tools") and not kept and endpoint.streams_tool_calls is False:
        return False
    return wanted or endpoint.engine == "simple"


def _stops_by_itself(endpoint: Endpoint, given: Mapping[str, Any]) -> bool:
    """Whether the server may be told the stop texts.

    Only the simple engine heeds them, and it does so in what the model thinks and in the tool calls
    it writes as well.
    """
    parsers = endpoint.parsers
    thinks = parsers is None or parsers.reasoning is not None
    plain = not given.get("tools") and not given.get("response_format")
    return endpoint.engine == "simple" and not thinks and plain


def _call_names(tools: Sequence[dict[str, Any]], aliases: Mapping[str, str]) -> CallNames:
    """Return what counts as a call that is written as text."""
    names = [tool_name(tool) for tool in tools]
    bare = {tool_name(tool) for tool in tools if takes_no_arguments(tool)}
    return CallNames({**{name: name for name in names}, **aliases}, bare)


def _is_vllm_mlx(endpoint: Endpoint) -> bool:
    """Whether the endpoint is known to be vllm-mlx, which only asks for a forced call."""
    return endpoint.managed or endpoint.engine is not None


def _server_choice(choice: Any) -> Any:
    if choice == "required":
        return choice
    return {"type": "function", "function": {"name": server_name(choice["function"]["name"])}}


def _select(tools: Sequence[dict[str, Any]], choice: Any) -> list[dict[str, Any]]:
    if choice == "required":
        return list(tools)
    name = choice["function"]["name"]
    return [tool for tool in tools if tool_name(tool) == name]


def _methods(
    endpoint: Endpoint,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[dict[str, Any]],
    given: Mapping[str, Any],
) -> Sequence[Literal["native", "grammar"]]:
    """Return how a forced call is tried.

    On vllm-mlx the grammar goes first where the model has no tool format of its own, and for a
    single named tool without tool history, where there is nothing in the cache to keep. Other
    servers may not know the grammar, and may enforce the choice by themselves.
    """
    method = given.get("tool_choice_method") or "auto"
    if method not in METHODS:
        raise ConfigurationError(
            f"`tool_choice_method` cannot be `{method}`", hint=f"use {', '.join(METHODS)}"
        )
    if method != "auto":
        return ("native",) if method == "native" else ("grammar",)
    if not _is_vllm_mlx(endpoint):
        return ("native", "grammar")
    formless = endpoint.parsers is not None and endpoint.parsers.tool_call is None
    named = given["tool_choice"] != "required" and len(tools) == 1
    if formless or (named and not has_tool_history(messages)):
        return ("grammar",)
    return ("native", "grammar")
