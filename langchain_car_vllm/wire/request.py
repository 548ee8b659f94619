"""From a call's parameters to the exchange that answers it."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.answer import Filter
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.exchange import Body, Exchange
from langchain_car_vllm.wire.parameters import SAMPLING, SERVERS
from langchain_car_vllm.wire.reasoning import reasoning_parameters
from langchain_car_vllm.wire.stop import StopCutter


def exchange_for(
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    stop: Sequence[str] | None,
    given: Mapping[str, Any],
    *,
    streamed: bool,
) -> Exchange:
    """Return the exchange for a call.

    Args:
        endpoint: Who answers; what it is decides how it must be asked.
        messages: The conversation in the server's form.
        stop: Where the answer ends, enforced here.
        given: The parameters, merged from the model and the call.
        streamed: Whether the answer goes on in parts.
    """
    body = body_for(endpoint, messages, given)
    stops = [text for text in stop or () if text]
    filters: list[Filter] = []
    if stops:
        filters.append(StopCutter(stops))
        if _stops_by_itself(endpoint, given):
            body["stop"] = stops
    if streamed or stops or endpoint.engine == "simple":
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return Exchange(body, filters)


def body_for(endpoint: Endpoint, messages: list[dict[str, Any]], given: Mapping[str, Any]) -> Body:
    """Return the JSON body of a plain request."""
    body: Body = {"model": endpoint.served_model, "messages": messages}
    body.update({name: given[name] for name in SAMPLING if given.get(name) is not None})
    if (timeout := given.get("timeout")) is not None:
        body["timeout"] = timeout
    if tools := given.get("tools"):
        body["tools"] = tools
        if (choice := given.get("tool_choice")) is not None:
            body["tool_choice"] = choice
    if (form := given.get("response_format")) is not None:
        body["response_format"] = form
    fields = reasoning_parameters(given.get("reasoning"), given.get("thinking_budget"))
    fields |= {name: given[name] for name in SERVERS if given.get(name) is not None}
    body.update(fields)
    for name, value in (given.get("extra_body") or {}).items():
        if name in ("model", "messages", "stream", "stream_options"):
            raise InvalidRequestError(f"`{name}` cannot be set in `extra_body`")
        body[name] = value
    return body


def _stops_by_itself(endpoint: Endpoint, given: Mapping[str, Any]) -> bool:
    """Whether the server may be told the stop texts.

    Only the simple engine heeds them, and it does so in what the model thinks and in the tool calls
    it writes as well.
    """
    parsers = endpoint.parsers
    thinks = parsers is None or parsers.reasoning is not None
    return endpoint.engine == "simple" and not thinks and not given.get("tools")
