"""Connections to the servers, for all threads and for each event loop.

None is made before the first call.

They read nothing from the environment: no proxy, key or gateway can send a local request elsewhere.
They are kept alive, as many as the limit of open files leaves room for. Those of an event loop
belong to it, so a second `asyncio.run` gets some of its own; they are closed when the loop shuts
down. Those to a server that has been started anew since are closed once nothing goes through them.
Those to many other addresses ago are closed too, and made anew for whoever comes back.
"""

import asyncio
import atexit
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import httpcore2
import httpx2

from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.support.closed_loops import ended_with_loop
from langchain_car_vllm.support.os_limits import most_files
from langchain_car_vllm.support.owned_generators import close_all
from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork
from langchain_car_vllm.support.secret_names import without_user
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.transport.port_guard import AsyncGuardedBackend, GuardedBackend, IsOurs

_MOST_POOLS = 64
_SHARE = 4
_MOST_CONNECTIONS = 256
_MOST_KEPT = 64
_KEPT_SECONDS = 4.0
_Any = TypeVar("_Any")


class Address(NamedTuple):
    """Where requests go, and as whom.

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

    def __repr__(self) -> str:
        return f"Address({without_user(self.base_url)!r})"

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


class Pools:
    """The connections to one address: those of this process, and those of each event loop.

    Args:
        address: Where they lead.
        is_ours: Whether the server there is still the one that was meant; each new one asks.
    """

    def __init__(self, address: Address, is_ours: IsOurs | None = None) -> None:
        self._address = address
        self._is_ours = is_ours

    def borrow(self) -> AbstractContextManager[httpcore2.ConnectionPool]:
        """Keep the connections open for the time of a request."""
        return self._pool().borrow()

    @asynccontextmanager
    async def aborrow(self) -> AsyncIterator[httpcore2.AsyncConnectionPool]:
        """Do the same with the running loop's; the loop closes them when it shuts down."""
        pool = await self._loop_pool()
        async with pool.borrow() as lent:
            yield lent

    def _pool(self) -> "_Pool":
        address = self._address
        with _lock:
            # What was used last is kept longest.
            if found := _pools.pop(address, None):
                _pools[address] = found
                return found
            retired = _take_out(_pools, address)
            backend = GuardedBackend(self._is_ours)
            made = _Pool(httpcore2.ConnectionPool(network_backend=backend, **_limits(address)))
            _pools[address] = made
        for pool in retired:
            pool.retire()
        _retire_in_loops(address)
        return made

    async def _loop_pool(self) -> "_AsyncPool":
        loop = asyncio.get_running_loop()
        pool = _loop_pools.get(loop, {}).get(self._address)
        if pool is None:
            if loop not in _closers:
                _closers[loop] = _until_shutdown(loop)
                # The loop meets what it begins itself, not what begins in somebody's generator.
                loop.call_soon(_begin, _closers[loop])
            # Making it reads certificates, which would block the loop.
            pool = await run_wait(self._make_loop_pool, loop)
            for retired in _take_out(_loop_pools.get(loop, {}), self._address):
                await retired.retire()
        return pool

    def _make_loop_pool(self, loop: asyncio.AbstractEventLoop) -> "_AsyncPool":
        _drop_closed_loops()
        with _lock:
            pools = _loop_pools.setdefault(loop, {})
            if self._address not in pools:
                backend = AsyncGuardedBackend(self._is_ours)
                pools[self._address] = _AsyncPool(backend, _limits(self._address))
            return pools[self._address]


class _Pool:
    """Connections that are lent, and closed when nobody needs them any more."""

    def __init__(self, pool: httpcore2.ConnectionPool) -> None:
        self.pool = pool
        self._mutex = ProcessLock()
        self._users = 0
        self._is_retired = False

    @contextmanager
    def borrow(self) -> Iterator[httpcore2.ConnectionPool]:
        with self._mutex:
            self._users += 1
        try:
            yield self.pool
        finally:
            with self._mutex:
                self._users -= 1
                self._close_unused()

    def retire(self) -> None:
        """Keep no connection from now on that no request uses."""
        with self._mutex:
            self._is_retired = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._is_retired and self._users == 0:
            self.pool.close()


class _AsyncPool:
    """The same for one event loop; nothing here is called from another."""

    def __init__(self, backend: AsyncGuardedBackend, limits: dict[str, Any]) -> None:
        self.pool = httpcore2.AsyncConnectionPool(network_backend=backend, **limits)
        self._backend = backend
        self._users = 0
        self._is_retired = False

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[httpcore2.AsyncConnectionPool]:
        self._users += 1
        try:
            with ended_with_loop(partial(_end_with_loop, self._backend)):
                yield self.pool
        finally:
            self._users -= 1
            await self._close_unused()

    async def retire(self) -> None:
        self._is_retired = True
        await self._close_unused()

    async def _close_unused(self) -> None:
        if self._is_retired and self._users == 0:
            await self.pool.aclose()


_lock = ProcessLock()
_pools: dict[Address, _Pool] = {}
_loop_pools: dict[asyncio.AbstractEventLoop, dict[Address, _AsyncPool]] = {}
_closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}
_tasks: set[asyncio.Task[None]] = set()


def _take_out(known: "dict[Address, _Any]", new: Address) -> "list[_Any]":
    """Take out what gives way to a new address: former starts of its server, and the least used."""
    former = [address for address in known if address.is_former(new)]
    others = [address for address in known if address != new and address not in former]
    excess = others[: max(0, len(others) + 1 - _MOST_POOLS)]
    return [known.pop(address) for address in [*former, *excess]]


def _retire_in_loops(address: Address) -> None:
    """Have every running loop close its connections to the server's former starts."""
    for loop in list(_loop_pools):
        if not loop.is_closed():
            try:
                loop.call_soon_threadsafe(_begin_retiring, loop, address)
            except RuntimeError:  # closed in this instant
                continue


def _begin_retiring(loop: asyncio.AbstractEventLoop, address: Address) -> None:
    known = _loop_pools.get(loop, {})
    for former in [other for other in known if other.is_former(address)]:
        task = loop.create_task(known.pop(former).retire())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


def _drop_closed_loops() -> None:
    """Forget the connections of loops that are closed, which closes them."""
    with _lock:
        for gone in [known for known in list(_loop_pools) if known.is_closed()]:
            _loop_pools.pop(gone, None)
            _closers.pop(gone, None)


def _end_with_loop(backend: AsyncGuardedBackend) -> None:
    backend.hang_up()
    _drop_closed_loops()


def _begin(closer: AsyncGenerator[None, None]) -> None:
    with suppress(StopIteration):  # it waits for nothing before it yields
        closer.__anext__().__await__().send(None)


async def _until_shutdown(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    # A loop that never met it leaves it to the interpreter, which has taken the names away by then.
    closers, loop_pools = _closers, _loop_pools
    try:
        yield
    finally:
        if loop.is_running():
            await close_all()
        closers.pop(loop, None)
        pools = loop_pools.pop(loop, {})
        if loop.is_running():
            for pool in pools.values():
                await pool.pool.aclose()


def most_connections(files: int | None) -> int:
    """Return how many connections a pool may have, so that files remain for all else.

    Args:
        files: How many the program may have open, None for no limit.
    """
    return _MOST_CONNECTIONS if files is None else max(1, min(files // _SHARE, _MOST_CONNECTIONS))


def _limits(address: Address) -> dict[str, Any]:
    most = most_connections(most_files())
    is_secured = address.base_url.lower().startswith("https:")
    return {
        "ssl_context": httpx2.create_ssl_context(trust_env=False) if is_secured else None,
        "max_connections": most,
        "max_keepalive_connections": min(most, _MOST_KEPT),
        "keepalive_expiry": _KEPT_SECONDS,
    }


def _forget() -> None:
    _pools.clear()
    _loop_pools.clear()
    _closers.clear()


@atexit.register
def _close() -> None:
    """Close the connections; what the program itself still does at its end makes new ones."""
    for pool in list(_pools.values()):
        pool.pool.close()


reset_after_fork(_forget)
