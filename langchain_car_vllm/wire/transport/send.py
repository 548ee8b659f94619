"""A request over a connection of ours, and what comes back of it as bytes.

The SDK's own way from a body to a response costs far more than the transport: it looks for models
to convert, merges headers, parses the address anew and follows redirects. Here the address and the
headers are made once, and httpcore is asked without anything in between.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from typing import Any, cast

import httpcore2
import httpx2

from langchain_car_vllm import __version__
from langchain_car_vllm.support.bounded_http import basic_credentials
from langchain_car_vllm.support.foreign_numbers import plain_value
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.transport.connection_pools import Address
from langchain_car_vllm.wire.transport.error_mapping import TRANSPORT_ERRORS
from langchain_car_vllm.wire.transport.network_streams import Sending, sending
from langchain_car_vllm.wire.transport.refusal import Refusal, Refusals

_FAILED = HTTPStatus.MULTIPLE_CHOICES
"""The first status that is not an answer; a redirect would take the prompt to somebody else."""
_BROKEN = (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError)
_MOST_REPEATS = 2
_STALE_SECONDS = 5.0
_MOST_ERROR_BYTES = 1 << 20
_ERROR_SECONDS = 5.0
_REST_SECONDS = 0.5


class ChatRequest:
    """Makes the requests to one address."""

    def __init__(self, address: Address, path: str = "/chat/completions") -> None:
        url = httpx2.URL(f"{address.base_url}{path}")
        self._url = target_of(url)
        self._headers = {
            "host": url.netloc.decode(),
            "accept": "*/*",
            "accept-encoding": "identity",
            "connection": "keep-alive",
            "content-type": "application/json",
            "user-agent": f"langchain-car-vllm/{__version__}",
            "authorization": f"Bearer {address.api_key or 'not-needed'}",
            **_lower_names(dict(address.headers)),
        }
        if url.userinfo:
            self._headers["authorization"] = f"Basic {basic_credentials(address.base_url)}"
        self._raw = _raw_headers(self._headers)

    def build(
        self,
        body: Mapping[str, Any],
        timeouts: Mapping[str, float | None],
        headers: Mapping[str, str] | None = None,
    ) -> httpcore2.Request:
        """Return the request for a body.

        Args:
            body: What is written as JSON.
            timeouts: The seconds that a step may take, by its name in httpcore.
            headers: The call's own ones, which take the place of others of that name.

        Raises:
            TypeError: The body holds what JSON cannot.
            ValueError: The same.
        """
        content = json.dumps(
            body,
            ensure_ascii=False,
            separators=(",", ":"),
            allow_nan=False,
            default=plain_value,
        ).encode()
        own = _raw_headers({**self._headers, **_lower_names(headers)}) if headers else self._raw
        return httpcore2.Request(
            b"POST",
            self._url,
            headers=[*own, (b"content-length", b"%d" % len(content))],
            content=content,
            extensions={"timeout": timeouts},
        )


def target_of(url: httpx2.URL) -> httpcore2.URL:
    """Return an address as httpcore takes it, without a user's name and password."""
    return httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Write names as ours are written, so that the user's value takes the place of ours."""
    return {name.lower(): value for name, value in headers.items()}


def _raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


@contextmanager
def open_stream(
    pool: httpcore2.ConnectionPool,
    build: Callable[[], httpcore2.Request],
    deadline: float | None = None,
    most_refusals: int = 0,
    end: float | None = None,
) -> Iterator[Iterable[bytes]]:
    """Send a request and yield the body of its response, in parts as they come.

    Args:
        pool: The connections to send it over.
        build: Returns the request, anew for each time that it is sent.
        deadline: Monotonic seconds by which the headers have to be there.
        most_refusals: How often it is sent again where the server refuses it for the moment.
        end: Monotonic seconds by which the whole body has to be there.

    Raises:
        Refusal: The server refused.
        httpcore2.NetworkError: It could not be reached, or the connection broke.
        httpcore2.ProtocolError: What came is not HTTP, or broke off.
        httpcore2.TimeoutException: It took too long.
    """
    refusals, process = Refusals(most_refusals, deadline), os.getpid()
    while True:
        response = _send(pool, build(), deadline)
        try:
            if response.status < _FAILED:
                response.extensions["network_stream"].end = end
                headers = _checked_headers(response)
                body: Any = response.stream
                is_plain = b"content-encoding" not in headers
                yield body if is_plain else _decoded(response, body).iter_bytes()
                return
            content = _error_body(response, deadline)
            seconds = refusals.wait(Refusal(response.status, response.headers, content))
        finally:
            # In a forked child another thread of the parent's may hold the pool's lock forever.
            if os.getpid() == process:
                if _brought_more(response):
                    response.extensions["network_stream"].close()
                response.close()
        time.sleep(seconds)


@asynccontextmanager
async def aopen_stream(
    pool: httpcore2.AsyncConnectionPool,
    build: Callable[[], httpcore2.Request],
    deadline: float | None = None,
    most_refusals: int = 0,
    end: float | None = None,
) -> AsyncIterator[AsyncIterable[bytes]]:
    """Do what `open_stream` does without blocking the event loop."""
    refusals = Refusals(most_refusals, deadline)
    while True:
        response = await _asend(pool, build(), deadline)
        try:
            if response.status < _FAILED:
                response.extensions["network_stream"].end = end
                headers = _checked_headers(response)
                body: Any = response.stream
                is_plain = b"content-encoding" not in headers
                yield body if is_plain else _decoded(response, body).aiter_bytes()
                return
            content = await _aerror_body(response, deadline)
            seconds = refusals.wait(Refusal(response.status, response.headers, content))
        finally:
            await aclose(response)
        await asyncio.sleep(seconds)


def read_rest(parts: Iterator[bytes]) -> None:
    """Read what follows the last event of an answer, which lets its connection be used again.

    Some servers keep the connection open, or break it off. That takes nothing from the answer.
    """
    with suppress(*TRANSPORT_ERRORS), sending(time.monotonic() + _REST_SECONDS):
        for _ in parts:
            pass


async def aread_rest(parts: AsyncIterator[bytes]) -> None:
    """Do what `read_rest` does without blocking the event loop."""
    with suppress(*TRANSPORT_ERRORS, TimeoutError):
        async with asyncio.timeout(_REST_SECONDS):
            async for _ in parts:
                pass


async def aclose(response: httpcore2.Response) -> None:
    """End an answer; its connection is used again only where that is safe."""
    try:
        if _brought_more(response):
            await response.extensions["network_stream"].aclose()
    finally:
        await response.aclose()


def _brought_more(response: httpcore2.Response) -> bool:
    """Tell whether more has come than the answer, which the next request would take for its own.

    A release of httpcore or h11 that does not tell any more is taken to have brought more.
    """
    stream: Any = response.stream
    try:
        more, _ = stream._stream._connection._h11_state.trailing_data  # noqa: SLF001 - who else knows
    except AttributeError:
        return True
    return bool(more)


def _send(
    pool: httpcore2.ConnectionPool, request: httpcore2.Request, deadline: float | None
) -> httpcore2.Response:
    repeats = 0
    while True:
        began = time.monotonic()
        with sending(deadline) as sent:
            try:
                return pool.handle_request(request)
            except _BROKEN:
                repeats += 1
                if not _is_worth_repeating(sent, began, repeats):
                    raise


async def _asend(
    pool: httpcore2.AsyncConnectionPool, request: httpcore2.Request, deadline: float | None
) -> httpcore2.Response:
    repeats = 0
    while True:
        began = time.monotonic()
        with sending() as sent:
            try:
                async with asyncio.timeout(None if deadline is None else max(deadline - began, 0)):
                    return await pool.handle_async_request(request)
            except TimeoutError as error:
                raise httpcore2.ReadTimeout("the time ran out") from error
            except _BROKEN:
                repeats += 1
                if not _is_worth_repeating(sent, began, repeats):
                    raise


def _is_worth_repeating(sent: Sending, began: float, repeats: int) -> bool:
    """Tell whether a request that broke before any byte of its answer was never read.

    A server may close a kept connection in the instant in which it is used again. One that closes
    after a while has worked on the request.
    """
    if sent.is_connected_anew or sent.is_answered:
        return False
    return time.monotonic() - began < _STALE_SECONDS and repeats <= _MOST_REPEATS


def _error_body(response: httpcore2.Response, deadline: float | None) -> bytes:
    """Return what can be had of an error's body, within bounds; what is late is left."""
    until = min(time.monotonic() + _ERROR_SECONDS, deadline or float("inf"))
    body = bytearray()
    try:
        with sending(until):
            for part in cast("Iterable[bytes]", response.stream):
                body += part
                if len(body) > _MOST_ERROR_BYTES or time.monotonic() > until:
                    break
    except TRANSPORT_ERRORS:
        pass  # the status says more than how its text broke off
    if _closes(response):
        response.extensions["network_stream"].close()
    return bytes(body[:_MOST_ERROR_BYTES])


async def _aerror_body(response: httpcore2.Response, deadline: float | None) -> bytes:
    until = min(time.monotonic() + _ERROR_SECONDS, deadline or float("inf"))
    body = bytearray()
    try:
        async with asyncio.timeout(max(until - time.monotonic(), 0)):
            async for part in cast("AsyncIterable[bytes]", response.stream):
                body += part
                if len(body) > _MOST_ERROR_BYTES:
                    break
    except (*TRANSPORT_ERRORS, TimeoutError):
        pass
    if _closes(response):
        await response.extensions["network_stream"].aclose()
    return bytes(body[:_MOST_ERROR_BYTES])


def _closes(response: httpcore2.Response) -> bool:
    """Tell whether the connection must not be used again: a server that failed closes it soon."""
    return response.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _checked_headers(response: httpcore2.Response) -> dict[bytes, bytes]:
    """Return the headers of an answer, by their names in small letters.

    Raises:
        ServerFailedError: It is a web page: a log-in page, or a wrong address.
    """
    headers = {name.lower(): value for name, value in response.headers}
    if headers.get(b"content-type", b"").lower().startswith(b"text/html"):
        raise ServerFailedError(
            "the endpoint sent a web page instead of an answer",
            hint="`base_url` must be the root of an OpenAI API, such as `http://127.0.0.1:8000/v1`",
            status=response.status,
        )
    return headers


def _decoded(response: httpcore2.Response, body: Any) -> httpx2.Response:
    """Return what reads a body that a proxy has compressed, which nobody asked for."""
    return httpx2.Response(response.status, headers=response.headers, content=body)
