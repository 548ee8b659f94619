"""The one door to a server: every connection is looked at before a byte goes through it.

A server may die or stop at any moment, and its port is then anybody's. So once a connection stands,
its owner is asked whether the server that was meant still serves and holds the other end.
"""

from collections.abc import Callable
from typing import Any

import httpx2

from langchain_car_vllm.support.threads import run_step
from langchain_car_vllm.wire.transport.network_streams import adopt

IsOurs = Callable[[int, int], bool]
"""Tells whether a connection from one port to another leads to the server that was meant."""

_CONNECTED = "connection.connect_tcp.complete"
_SECURED = "connection.start_tls.complete"
_CONNECTION = "langchain_car_vllm.connection"


class _Found:
    """What a request learned of its connection.

    The request leads to its hook, so the hook must not lead to the request: such a circle keeps the
    prompt until Python's collector comes.
    """

    is_new = False


def sync_hooks(is_ours: IsOurs | None) -> dict[str, list[Any]]:
    """Return the event hooks of a client's connections.

    Args:
        is_ours: Asked for each new connection; None for a server that somebody else runs.
    """

    def hook(request: httpx2.Request) -> None:
        request.extensions[_CONNECTION] = found = _Found()

        def trace(event: str, info: dict[str, Any]) -> None:
            if event == _CONNECTED and is_ours is not None:
                _check(is_ours, info["return_value"])
            if event in (_CONNECTED, _SECURED):
                found.is_new = True
                adopt(info["return_value"])

        request.extensions["trace"] = trace

    return {"request": [hook]}


def async_hooks(is_ours: IsOurs | None) -> dict[str, list[Any]]:
    """Return the same for an asynchronous client."""

    async def hook(request: httpx2.Request) -> None:
        request.extensions[_CONNECTION] = found = _Found()

        async def trace(event: str, info: dict[str, Any]) -> None:
            if event == _CONNECTED and is_ours is not None:
                await _acheck(is_ours, info["return_value"])
            if event in (_CONNECTED, _SECURED):
                found.is_new = True
                adopt(info["return_value"])

        request.extensions["trace"] = trace

    return {"request": [hook]}


def _check(is_ours: IsOurs, stream: Any) -> None:
    found = False
    try:
        found = _ask(is_ours, _ports(stream))
    finally:
        if not found:
            stream.close()
    if not found:
        raise _is_gone()


async def _acheck(is_ours: IsOurs, stream: Any) -> None:
    found = False
    try:
        found = await run_step(_ask, is_ours, _ports(stream))
    finally:
        if not found:
            await stream.aclose()
    if not found:
        raise _is_gone()


def _ask(is_ours: IsOurs, ports: tuple[int, int]) -> bool:
    try:
        return is_ours(*ports)
    except OSError as error:  # such as too many open files: that says nothing of the server
        raise httpx2.ConnectError(error.strerror or str(error)) from error


def is_on_kept_connection(request: httpx2.Request) -> bool:
    """Tell whether a request that was sent went over a connection that had served before."""
    found = request.extensions.get(_CONNECTION)
    return found is not None and not found.is_new


def _ports(stream: Any) -> tuple[int, int]:
    connected = stream.get_extra_info("socket")
    try:
        return connected.getsockname()[1], connected.getpeername()[1]
    except OSError as error:  # the server ended in the meantime, and its system reset what stood
        raise httpx2.ConnectError("the connection was closed before it was used") from error


def _is_gone() -> httpx2.ConnectError:
    return httpx2.ConnectError("the server is gone, and somebody else listens on its port")
