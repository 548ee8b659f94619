"""The SDK's clients and what they stand on, for all threads and for each event loop.

None is made before the first call.

They read nothing from the environment: no proxy, key, organisation or gateway of OpenAI's can send
a local request elsewhere. Connections are kept alive. An asynchronous client belongs to the loop it
was made for, so a second `asyncio.run` gets one of its own; it is closed when its loop shuts down.
"""

import asyncio
import atexit
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx2
import openai

from langchain_car_vllm.process_state import ProcessLock, reset_after_fork
from langchain_car_vllm.wire.transport.port_guard import IsOurs, async_hooks, sync_hooks

_NO_LIMIT = httpx2.Timeout(None, connect=10.0)
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0)


class Address(NamedTuple):
    """Where a client talks to, and as whom."""

    base_url: str
    api_key: str | None
    headers: tuple[tuple[str, str], ...] = ()


class Clients(NamedTuple):
    """The SDK's client, and the transport that it stands on."""

    sdk: openai.OpenAI
    http: httpx2.Client


class AsyncClients(NamedTuple):
    """The same for one event loop."""

    sdk: openai.AsyncOpenAI
    http: httpx2.AsyncClient


_lock = ProcessLock()
_sync: dict[Address, Clients] = {}
_async: dict[asyncio.AbstractEventLoop, dict[Address, AsyncClients]] = {}


def sync_clients(address: Address, is_ours: IsOurs | None = None) -> Clients:
    """Return this process's clients for `address`, safe for all its threads.

    Args:
        address: Where it talks to.
        is_ours: Whether the server there is still the one that was meant; asked by each connection.
    """
    with _lock:
        if address not in _sync:
            http = openai.DefaultHttpxClient(
                trust_env=False,
                verify=_verify(address),
                limits=_LIMITS,
                event_hooks=sync_hooks(is_ours),
            )
            _sync[address] = Clients(openai.OpenAI(**_settings(address), http_client=http), http)
        return _sync[address]


class LoopClients:
    """Stands where ChatOpenAI keeps its asynchronous client: every event loop has its own.

    Args:
        address: Where the clients talk to.
        is_ours: As for `sync_clients`.
    """

    def __init__(self, address: Address, is_ours: IsOurs | None = None) -> None:
        self._address = address
        self._is_ours = is_ours

    async def current(self) -> AsyncClients:
        """Return the running loop's clients; the loop closes them when it shuts down."""
        loop = asyncio.get_running_loop()
        clients = _async.get(loop, {}).get(self._address)
        if clients is None:
            if loop not in _closers:
                _closers[loop] = _until_shutdown(loop)
                await anext(_closers[loop])
            # Building them reads certificates, which would block the loop.
            clients = await asyncio.to_thread(
                _make_async_clients, self._address, self._is_ours, loop
            )
        return clients


def _make_async_clients(
    address: Address, is_ours: IsOurs | None, loop: asyncio.AbstractEventLoop
) -> AsyncClients:
    with _lock:
        for gone in [known for known in _async if known.is_closed()]:
            del _async[gone]
            _closers.pop(gone, None)
        clients = _async.setdefault(loop, {})
        if address not in clients:
            http = openai.DefaultAsyncHttpxClient(
                trust_env=False,
                verify=_verify(address),
                limits=_LIMITS,
                event_hooks=async_hooks(is_ours),
            )
            sdk = openai.AsyncOpenAI(**_settings(address), http_client=http)
            clients[address] = AsyncClients(sdk, http)
        return clients[address]


_closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}


async def _until_shutdown(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _closers.pop(loop, None)
        for clients in _async.pop(loop, {}).values():
            await clients.sdk.close()


def _settings(address: Address) -> dict[str, Any]:
    # An empty organisation keeps the environment's out; then nothing need be said of it.
    unsaid = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
    return {
        "base_url": address.base_url,
        "api_key": address.api_key or "not-needed",
        "organization": "",
        "project": "",
        "max_retries": 0,
        "timeout": _NO_LIMIT,
        "default_headers": {**unsaid, **dict(address.headers)},
    }


def _verify(address: Address) -> bool:
    return address.base_url.startswith("https:")


def _forget() -> None:
    _sync.clear()
    _async.clear()
    _closers.clear()


@atexit.register
def _close() -> None:
    for clients in _sync.values():
        clients.sdk.close()


reset_after_fork(_forget)
