"""The one door to a server: every connection is looked at before a byte goes through it.

A server may die or stop at any moment, and its port is then anybody's. So once a connection stands,
its owner is asked whether the server that was meant still serves and holds the other end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx2

from langchain_car_vllm.threads import run_step

IsOurs = Callable[[int, int], bool]
"""Tells whether a connection from one port to another leads to the server that was meant."""

_CONNECTED = "connection.connect_tcp.complete"
_SECURED = "connection.start_tls.complete"
_IS_NEW = "langchain_car_vllm.is_new"
_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)


def sync_hooks(is_ours: IsOurs | None) -> dict[str, list[Any]]:
    """Return the event hooks of a client's connections.

    Args:
        is_ours: Asked for each new connection; None for a server that somebody else runs.
    """

    def hook(request: httpx2.Request) -> None:
        request.extensions[_IS_NEW] = False

        def trace(event: str, info: dict[str, Any]) -> None:
            if event == _CONNECTED and is_ours is not None:
                _check(is_ours, info["return_value"])
            if event in (_CONNECTED, _SECURED):
                request.extensions[_IS_NEW] = True
                _limit_reads(info["return_value"])

        request.extensions["trace"] = trace

    return {"request": [hook]}


def async_hooks(is_ours: IsOurs | None) -> dict[str, list[Any]]:
    """Return the same for an asynchronous client."""

    async def hook(request: httpx2.Request) -> None:
        request.extensions[_IS_NEW] = False

        async def trace(event: str, info: dict[str, Any]) -> None:
            if event == _CONNECTED and is_ours is not None:
                await _acheck(is_ours, info["return_value"])
            if event in (_CONNECTED, _SECURED):
                request.extensions[_IS_NEW] = True

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
    return not request.extensions.get(_IS_NEW, True)


@contextmanager
def reads_until(deadline: float | None) -> Iterator[None]:
    """Let no read of a synchronous client last beyond a moment.

    Its own limits are for a single read, and headers may come byte by byte.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def _limit_reads(stream: Any) -> None:
    read = stream.read

    def limited(max_bytes: int, timeout: float | None = None) -> bytes:
        deadline = _deadline.get()
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise httpcore2.ReadTimeout("the time ran out")
            timeout = left if timeout is None else min(left, timeout)
        data: bytes = read(max_bytes, timeout)
        return data

    stream.read = limited


def _ports(stream: Any) -> tuple[int, int]:
    return stream.get_extra_info("client_addr")[1], stream.get_extra_info("server_addr")[1]


def _is_gone() -> httpx2.ConnectError:
    return httpx2.ConnectError("the server is gone, and somebody else listens on its port")
