"""The SDK's clients and what they stand on, for all threads and for each event loop.

None is made before the first call.

They read nothing from the environment: no proxy, key, organisation or gateway of OpenAI's can send
a local request elsewhere. Connections are kept alive, as many as the limit of open files leaves
room for. An asynchronous client belongs to the loop it was made for, so a second `asyncio.run` gets
one of its own; it is closed when its loop shuts down. Clients of a server that has been started
anew since are closed once nothing goes through them. Those of many other addresses ago keep no
connection, and make a new one for whoever still has them.
"""

import asyncio
import atexit
import resource
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar

import httpx2
import openai

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.transport.error_mapping import CONNECT_SECONDS
from langchain_car_vllm.wire.transport.port_guard import IsOurs, async_hooks, sync_hooks

_NO_LIMIT = httpx2.Timeout(None, connect=CONNECT_SECONDS)
_MOST_CLIENTS = 64
_SHARE = 4
_MOST_CONNECTIONS = 256
_KEPT_SECONDS = 4.0
Headers = tuple[tuple[str, str], ...]
_Any = TypeVar("_Any")


class Address(NamedTuple):
    """Where a client talks to, and as whom.

    Attributes:
        base_url: Root of the OpenAI API.
        api_key: The bearer key.
        headers: Sent with every request.
        server: What stays the same when a server of ours is started anew, None for others.
        generation: Which of its starts.
    """

    base_url: str
    api_key: str | None
    headers: Headers = ()
    server: str | None = None
    generation: int = 0

    def is_former(self, other: "Address") -> bool:
        """Tell whether this leads to a server that another start has taken the place of."""
        return (
            self.server is not None
            and self.server == other.server
            and self.generation < other.generation
        )


def address_of(endpoint: Endpoint, headers: Headers = ()) -> Address:
    """Return where an endpoint is talked to."""
    server = str(endpoint.log_path) if endpoint.managed else None
    return Address(endpoint.base_url, endpoint.api_key, headers, server, endpoint.generation)


class Clients:
    """The SDK's client, and the transport that it stands on.

    Attributes:
        sdk: The SDK's client.
        http: The transport.
    """

    def __init__(self, sdk: openai.OpenAI, http: httpx2.Client) -> None:
        self.sdk = sdk
        self.http = http
        self._mutex = ProcessLock(reentrant=True)
        self._users = 0
        self._is_retired = self._is_resting = False

    @contextmanager
    def borrow(self) -> Iterator[httpx2.Client]:
        """Keep the connections open for the time of a request.

        Raises:
            httpx2.ConnectError: They are closed: the server was started anew.
        """
        with self._mutex:
            if self._is_retired and self._users == 0:
                raise _is_retired()
            self._users += 1
        try:
            yield self.http
        finally:
            with self._mutex:
                self._users -= 1
                is_last = self._is_retired and self._users == 0
                self._close_unused()
            if is_last:
                self.sdk.close()

    def rest(self) -> None:
        """Keep no connection from now on that no request uses."""
        with self._mutex:
            self._is_resting = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._is_resting and self._users == 0:
            self.http._transport.close()  # noqa: SLF001 - a closed client would make no new ones

    def retire(self) -> None:
        """Close the connections once no request uses them."""
        with self._mutex:
            self._is_retired = True
            is_unused = self._users == 0
        if is_unused:
            self.sdk.close()


class AsyncClients:
    """The same for one event loop; nothing here is called from another."""

    def __init__(self, sdk: openai.AsyncOpenAI, http: httpx2.AsyncClient) -> None:
        self.sdk = sdk
        self.http = http
        self._users = 0
        self._is_retired = self._is_resting = False

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[httpx2.AsyncClient]:
        """Do what `Clients.borrow` does."""
        if self._is_retired and self._users == 0:
            raise _is_retired()
        self._users += 1
        use = _Use()
        # A loop that is closed with an open stream never comes back to it.
        left_behind = weakref.finalize(use, _drop_closed_loops)
        try:
            yield self.http
        finally:
            left_behind.detach()
            self._users -= 1
            if self._is_retired and self._users == 0:
                await self.sdk.close()
            await self._close_unused()

    async def rest(self) -> None:
        """Do what `Clients.rest` does."""
        self._is_resting = True
        await self._close_unused()

    async def _close_unused(self) -> None:
        if self._is_resting and self._users == 0:
            await self.http._transport.aclose()  # noqa: SLF001 - as above

    async def retire(self) -> None:
        """Do what `Clients.retire` does."""
        self._is_retired = True
        if self._users == 0:
            await self.sdk.close()


class _Use:
    """The time of one request: it ends with whatever waits for the answer."""


def _is_retired() -> httpx2.ConnectError:
    return httpx2.ConnectError("the server was started anew")


_lock = ProcessLock(reentrant=True)
_sync: dict[Address, Clients] = {}
_async: dict[asyncio.AbstractEventLoop, dict[Address, AsyncClients]] = {}


def sync_clients(address: Address, is_ours: IsOurs | None = None) -> Clients:
    """Return this process's clients for `address`, safe for all its threads.

    Args:
        address: Where it talks to.
        is_ours: Whether the server there is still the one that was meant; asked by each connection.
    """
    with _lock:
        found = _sync.pop(address, None)
        retired, rested = ([], []) if found else _take_out(_sync, address)
        if found is None:
            http = openai.DefaultHttpxClient(**_transport(address), event_hooks=sync_hooks(is_ours))
            found = Clients(openai.OpenAI(**_settings(address), http_client=http), http)
        _sync[address] = found
    for clients in retired:
        clients.retire()
    for clients in rested:
        clients.rest()
    if retired:
        _retire_in_loops(address)
    return found


def _take_out(known: "dict[Address, _Any]", new: Address) -> "tuple[list[_Any], list[_Any]]":
    """Take out the clients that give way to those of a new address; the last used stay.

    Returns:
        Those of former starts of its server, and those that are too many.
    """
    former = [address for address in known if address.is_former(new)]
    others = [address for address in known if address != new and address not in former]
    excess = others[: max(0, len(others) + 1 - _MOST_CLIENTS)]
    return [known.pop(address) for address in former], [known.pop(address) for address in excess]


def _retire_in_loops(address: Address) -> None:
    """Have every running loop close its clients of the server's former starts."""
    for loop in list(_async):
        if not loop.is_closed():
            try:
                loop.call_soon_threadsafe(_begin_retiring, loop, address)
            except RuntimeError:  # closed in this instant
                continue


def _begin_retiring(loop: asyncio.AbstractEventLoop, address: Address) -> None:
    known = _async.get(loop, {})
    for former in [other for other in known if other.is_former(address)]:
        task = loop.create_task(known.pop(former).retire())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Task[None]] = set()


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
            clients = await run_wait(_make_async_clients, self._address, self._is_ours, loop)
            retired, rested = _take_out(_async.get(loop, {}), self._address)
            for former in retired:
                await former.retire()
            for other in rested:
                await other.rest()
        return clients


def _make_async_clients(
    address: Address, is_ours: IsOurs | None, loop: asyncio.AbstractEventLoop
) -> AsyncClients:
    _drop_closed_loops()
    with _lock:
        clients = _async.setdefault(loop, {})
        if address not in clients:
            http = openai.DefaultAsyncHttpxClient(
                **_transport(address), event_hooks=async_hooks(is_ours)
            )
            sdk = openai.AsyncOpenAI(**_settings(address), http_client=http)
            clients[address] = AsyncClients(sdk, http)
        return clients[address]


def _drop_closed_loops() -> None:
    """Forget the clients of loops that are closed, which closes their connections."""
    with _lock:
        for gone in [known for known in list(_async) if known.is_closed()]:
            _async.pop(gone, None)
            _closers.pop(gone, None)


_closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}


async def _until_shutdown(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _closers.pop(loop, None)
        for clients in _async.pop(loop, {}).values():
            await clients.sdk.close()


def most_connections(soft_limit: int) -> int:
    """Return how many connections a client may have, so that files remain for all else."""
    if soft_limit == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(1, min(soft_limit // _SHARE, _MOST_CONNECTIONS))


def _transport(address: Address) -> dict[str, Any]:
    most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    limits = httpx2.Limits(
        max_connections=most,
        max_keepalive_connections=min(most, 64),
        keepalive_expiry=_KEPT_SECONDS,
    )
    return {
        "trust_env": False,
        "verify": address.base_url.startswith("https:"),
        "limits": limits,
        # It would take the prompt and the headers to somebody else.
        "follow_redirects": False,
    }


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


def _forget() -> None:
    _sync.clear()
    _async.clear()
    _closers.clear()


@atexit.register
def _close() -> None:
    """Close the connections, and leave the clients to what the program itself does at its end."""
    for clients in list(_sync.values()):
        clients.http._transport.close()  # noqa: SLF001 - of a closed client nobody gets an answer


reset_after_fork(_forget)
