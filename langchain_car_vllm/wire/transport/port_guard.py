"""Nothing is said to a stranger who listens where our server did.

A server may die at any moment, and its port is then anybody's. While it lives nobody else can
listen there. So if it lives once a connection stands, the connection leads to it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2

IsOurs = Callable[[], bool]
_CONNECTED = "connection.connect_tcp.complete"


def sync_hooks(is_ours: IsOurs | None) -> dict[str, list[Any]]:
    """Return the event hooks of a client that talks to our server only, none without `is_ours`."""
    if is_ours is None:
        return {}

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == _CONNECTED and not is_ours():
            info["return_value"].close()
            raise _is_gone()

    def hook(request: httpx2.Request) -> None:
        request.extensions["trace"] = trace

    return {"request": [hook]}


def async_hooks(is_ours: IsOurs | None) -> dict[str, list[Any]]:
    """Return the same for an asynchronous client."""
    if is_ours is None:
        return {}

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event != _CONNECTED:
            return
        found = False
        try:
            found = await asyncio.to_thread(is_ours)
        finally:
            if not found:
                await info["return_value"].aclose()
        if not found:
            raise _is_gone()

    async def hook(request: httpx2.Request) -> None:
        request.extensions["trace"] = trace

    return {"request": [hook]}


def _is_gone() -> httpx2.ConnectError:
    return httpx2.ConnectError("the server is gone, and somebody else listens on its port")
