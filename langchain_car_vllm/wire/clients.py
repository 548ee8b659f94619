"""The SDK's clients: one for all threads, one for each event loop, none before the first call.

They read nothing from the environment: no proxy, key, organisation or gateway of OpenAI's can send
a local request elsewhere. Connections are kept alive. An asynchronous client belongs to the loop it
was made for, so a second `asyncio.run` gets one of its own; it is closed when its loop shuts down.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx2
import openai

from langchain_car_vllm.wire.guard import IsOurs, async_hooks, sync_hooks

_NO_LIMIT = httpx2.Timeout(None, connect=10.0)
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0)


class Address(NamedTuple):
    """Where a client talks to, and as whom."""

    base_url: str
    api_key: str | None
    headers: tuple[tuple[str, str], ...] = ()


_lock = threading.Lock()
_sync: dict[Address, openai.OpenAI] = {}
_async: dict[asyncio.AbstractEventLoop, dict[Address, openai.AsyncOpenAI]] = {}


def sync_client(address: Address, is_ours: IsOurs | None = None) -> openai.OpenAI:
    """Return this process's client for `address`, safe for all its threads.

    Args:
        address: Where it talks to.
        is_ours: Whether the server there is still the one that was meant; asked by each connection.
    """
    with _lock:
        if address not in _sync:
            _sync[address] = openai.OpenAI(
                base_url=address.base_url,
                api_key=address.api_key or "not-needed",
                organization="",
                project="",
                max_retries=0,
                timeout=_NO_LIMIT,
                default_headers=_headers(address),
                http_client=openai.DefaultHttpxClient(
                    trust_env=False,
                    verify=_verify(address),
                    limits=_LIMITS,
                    event_hooks=sync_hooks(is_ours),
                ),
            )
        return _sync[address]


class LoopClients:
    """Stands where ChatOpenAI keeps its asynchronous client: every event loop has its own.

    Args:
        address: Where the clients talk to.
        is_ours: As for `sync_client`.
    """

    def __init__(self, address: Address, is_ours: IsOurs | None = None) -> None:
        self._address = address
        self._is_ours = is_ours

    async def current(self) -> openai.AsyncOpenAI:
        """Return the running loop's client; the loop closes it when it shuts down."""
        loop = asyncio.get_running_loop()
        client = _async.get(loop, {}).get(self._address)
        if client is None:
            if loop not in _closers:
                _closers[loop] = _until_shutdown(loop)
                await anext(_closers[loop])
            # Building one reads certificates, which would block the loop.
            client = await asyncio.to_thread(_make_async_client, self._address, self._is_ours, loop)
        return client


def _make_async_client(
    address: Address, is_ours: IsOurs | None, loop: asyncio.AbstractEventLoop
) -> openai.AsyncOpenAI:
    with _lock:
        for gone in [known for known in _async if known.is_closed()]:
            del _async[gone]
            _closers.pop(gone, None)
        clients = _async.setdefault(loop, {})
        if address not in clients:
            clients[address] = openai.AsyncOpenAI(
                base_url=address.base_url,
                api_key=address.api_key or "not-needed",
                organization="",
                project="",
                max_retries=0,
                timeout=_NO_LIMIT,
                default_headers=_headers(address),
                http_client=openai.DefaultAsyncHttpxClient(
                    trust_env=False,
                    verify=_verify(address),
                    limits=_LIMITS,
                    event_hooks=async_hooks(is_ours),
                ),
            )
        return clients[address]


_closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}


async def _until_shutdown(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _closers.pop(loop, None)
        for client in _async.pop(loop, {}).values():
            await client.close()


def _headers(address: Address) -> dict[str, str]:
    # An empty organisation keeps the environment's out; then nothing need be said of it.
    headers: dict[str, Any] = {
        "OpenAI-Organization": openai.Omit(),
        "OpenAI-Project": openai.Omit(),
        **dict(address.headers),
    }
    return headers


def _verify(address: Address) -> bool:
    return address.base_url.startswith("https:")


def _forget() -> None:
    global _lock  # noqa: PLW0603 - a child must not wait for a thread of its parent's
    _lock = threading.Lock()
    _sync.clear()
    _async.clear()
    _closers.clear()


@atexit.register
def _close() -> None:
    for client in _sync.values():
        client.close()


os.register_at_fork(after_in_child=_forget)
