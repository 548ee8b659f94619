"""The one door to a server: every connection is looked at before a byte goes through it.

A server may die or stop at any moment, and its port is then anybody's. So once a connection stands,
its owner is asked whether the server that was meant still serves and holds the other end.

Names are looked up in threads of our own: the system's resolver knows no limit of time, and an
event loop's threads are everybody's.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import httpcore2

from langchain_car_vllm.support.bounded_http import as_address, find_addresses, turns
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.threads import run_step, run_wait
from langchain_car_vllm.wire.transport.network_streams import (
    AsyncStream,
    Stream,
    closed_on_failure,
    note_connected,
)

_USUAL_SECONDS = 10.0
IsOurs = Callable[[int, int], bool]
"""Tells whether a connection from one port to another leads to the server that was meant."""


class GuardedBackend(httpcore2.NetworkBackend):
    """Makes the connections of a pool.

    Args:
        is_ours: Asked for each of them; None for a server that somebody else runs.
        backend: What makes them, by default the system's sockets.
    """

    def __init__(
        self, is_ours: IsOurs | None, backend: httpcore2.NetworkBackend | None = None
    ) -> None:
        self._is_ours = is_ours
        self._backend = backend or httpcore2.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **options: Any
    ) -> Stream:
        """Connect.

        Raises:
            httpcore2.ConnectError: Nobody is there, or somebody else.
            httpcore2.ConnectTimeout: Nobody answers.
        """
        note_connected()
        stream = self._connect(host, port, _deadline_of(timeout), *args, **options)
        try:
            if self._is_ours is not None:
                _ask(self._is_ours, _ports(stream))
        except BaseException:
            stream.close()
            raise
        return Stream(stream)

    def _connect(
        self, host: str, port: int, deadline: float, *args: Any, **options: Any
    ) -> httpcore2.NetworkStream:
        failure: Exception = httpcore2.ConnectError()
        with _told_as_not_connected():
            for address, seconds in turns(find_addresses(host, port, deadline), deadline):
                try:
                    return self._backend.connect_tcp(address, port, seconds, *args, **options)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                    failure = error
        raise failure


class AsyncGuardedBackend(httpcore2.AsyncNetworkBackend):
    """The same for an event loop."""

    def __init__(
        self, is_ours: IsOurs | None, backend: httpcore2.AsyncNetworkBackend | None = None
    ) -> None:
        self._is_ours = is_ours
        self._backend = backend or httpcore2.AnyIOBackend()
        self._streams: WeakSet[AsyncStream] = WeakSet()
        # anyio imports it at its first step, on the loop; backends are made in a thread.
        with suppress(ImportError):
            import_whole("anyio._backends._asyncio")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        *args: Any,
        **options: Any,
    ) -> AsyncStream:
        """Do what `GuardedBackend.connect_tcp` does without blocking the event loop."""
        note_connected()
        stream = await self._connect(host, port, _deadline_of(timeout), *args, **options)
        async with closed_on_failure(stream):
            if self._is_ours is not None:
                await run_step(_ask, self._is_ours, _ports(stream))
        made = AsyncStream(stream)
        self._streams.add(made)
        return made

    def hang_up(self) -> None:
        """End all connections at once, since their loop is closed: whoever waits may be kept."""
        for stream in list(self._streams):
            with suppress(OSError, AttributeError, TypeError):  # it is closed, or of another loop
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def _connect(
        self, host: str, port: int, deadline: float, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError()
        with _told_as_not_connected():
            known = as_address(host)
            found = [known] if known else await run_wait(find_addresses, host, port, deadline)
            for address, seconds in turns(found, deadline):
                try:
                    return await self._backend.connect_tcp(address, port, seconds, *args, **options)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                    failure = error
        raise failure


def _deadline_of(timeout: float | None) -> float:
    return time.monotonic() + (_USUAL_SECONDS if timeout is None else timeout)


@contextmanager
def _told_as_not_connected() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout("nobody answered in time") from error
    except OSError as error:
        raise httpcore2.ConnectError(str(error)) from error


def _ask(is_ours: IsOurs, ports: tuple[int, int]) -> None:
    try:
        is_meant = is_ours(*ports)
    except OSError as error:  # such as too many open files: that says nothing of the server
        raise httpcore2.ConnectError(error.strerror or str(error)) from error
    if not is_meant:
        raise httpcore2.ConnectError("the server is gone, and another program listens on its port")


def _ports(stream: Any) -> tuple[int, int]:
    connected = stream.get_extra_info("socket")
    try:
        return connected.getsockname()[1], connected.getpeername()[1]
    except OSError as error:  # the server ended in the meantime, and its system reset what stood
        raise httpcore2.ConnectError("the connection was closed before it was used") from error
