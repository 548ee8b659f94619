"""A request over the SDK's connection, and what comes back of it as bytes.

The SDK's own way from a body to a response costs twice what the transport does: it looks for models
to convert, merges headers and parses the address anew. Here the address and the headers are made
once. Errors are the SDK's, so that they are told in one place.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import httpx2
import openai

from langchain_car_vllm import __version__
from langchain_car_vllm.endpoint import basic_credentials
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.transport.clients import Address
from langchain_car_vllm.wire.transport.network_streams import reads_until
from langchain_car_vllm.wire.transport.port_guard import is_on_kept_connection

_FAILED = httpx2.codes.MULTIPLE_CHOICES
"""The first status that is not an answer; a redirect would take the prompt to somebody else."""
_BROKEN = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
_MOST_REPEATS = 2
_STALE_SECONDS = 5.0
_MOST_ERROR_BYTES = 1 << 20
_ERROR_SECONDS = 5.0
_KEPT_HEADERS = (b"retry-after", b"location", b"x-request-id")


class ChatRequest:
    """Makes the requests to one address.

    Args:
        address: Where to, and as whom.
        path: Below the address.
    """

    def __init__(self, address: Address, path: str = "/chat/completions") -> None:
        url = httpx2.URL(f"{address.base_url}{path}")
        # The transport's log has the address of each request in it.
        self._url = url.copy_with(username="", password="") if url.userinfo else url
        self._headers = httpx2.Headers(
            {
                "host": self._url.netloc.decode(),
                "accept": "*/*",
                "accept-encoding": "identity",
                "connection": "keep-alive",
                "content-type": "application/json",
                "user-agent": f"langchain-car-vllm/{__version__}",
                "authorization": f"Bearer {address.api_key or 'not-needed'}",
                **_lower_names(dict(address.headers)),
                **(
                    {"authorization": f"Basic {basic_credentials(address.base_url)}"}
                    if url.userinfo
                    else {}
                ),
            }
        )

    def build(
        self,
        body: Mapping[str, Any],
        timeout: httpx2.Timeout,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Request:
        """Return the request for a body.

        Raises:
            TypeError: The body holds what JSON cannot.
            ValueError: The same.
        """
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return httpx2.Request(
            "POST",
            self._url,
            headers=httpx2.Headers({**self._headers, **_lower_names(headers)})
            if headers
            else self._headers,
            content=content.encode(),
            extensions={"timeout": timeout.as_dict()},
        )


def _lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Write names as ours are written, so that the user's value takes the place of ours."""
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def open_stream(
    http: httpx2.Client, request: httpx2.Request, deadline: float | None = None
) -> Iterator[Iterable[bytes]]:
    """Send a request and yield the body of its response, in parts as they come.

    Args:
        http: What sends it.
        request: The request.
        deadline: Monotonic seconds by which the headers have to be there.

    Raises:
        openai.APIStatusError: The server refused.
        httpx2.TransportError: It could not be reached.
    """
    response = _send(http, request, deadline)
    try:
        if response.status_code >= _FAILED:
            raise _refusal(response, _error_body(response, deadline))
        _check_form(response)
        yield response.iter_bytes() if _is_encoded(response) else cast("Any", response.stream)
    finally:
        response.close()


@asynccontextmanager
async def aopen_stream(
    http: httpx2.AsyncClient, request: httpx2.Request, deadline: float | None = None
) -> AsyncIterator[AsyncIterable[bytes]]:
    """Do what `open_stream` does without blocking the event loop."""
    response = await _asend(http, request, deadline)
    try:
        if response.status_code >= _FAILED:
            raise _refusal(response, await _aerror_body(response, deadline))
        _check_form(response)
        yield response.aiter_bytes() if _is_encoded(response) else cast("Any", response.stream)
    finally:
        await response.aclose()


def _send(http: httpx2.Client, request: httpx2.Request, deadline: float | None) -> httpx2.Response:
    repeats = 0
    while True:
        began = time.monotonic()
        try:
            with reads_until(deadline):
                return http.send(request, stream=True, follow_redirects=False)
        except _BROKEN:
            repeats += 1
            if not _is_worth_repeating(request, began, repeats):
                raise


async def _asend(
    http: httpx2.AsyncClient, request: httpx2.Request, deadline: float | None
) -> httpx2.Response:
    repeats = 0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if deadline is None else max(deadline - began, 0)):
                return await http.send(request, stream=True, follow_redirects=False)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the time ran out", request=request) from error
        except _BROKEN:
            repeats += 1
            if not _is_worth_repeating(request, began, repeats):
                raise


def _is_worth_repeating(request: httpx2.Request, began: float, repeats: int) -> bool:
    """Tell whether a request that broke before any byte of its answer was never read.

    A server may close a kept connection in the instant in which it is used again. One that closes
    after a while has worked on the request.
    """
    is_stale = is_on_kept_connection(request) and time.monotonic() - began < _STALE_SECONDS
    return is_stale and repeats <= _MOST_REPEATS


def _error_body(response: httpx2.Response, deadline: float | None) -> bytes:
    """Return what can be had of an error's body, within bounds; what is late is left."""
    until = min(time.monotonic() + _ERROR_SECONDS, deadline or float("inf"))
    body = bytearray()
    try:
        with reads_until(until):
            for part in _raw(response):
                body += part
                if len(body) > _MOST_ERROR_BYTES or time.monotonic() > until:
                    break
    except httpx2.HTTPError:
        pass  # the status says more than how its text broke off
    if _closes(response):
        response.extensions["network_stream"].close()
    return bytes(body[:_MOST_ERROR_BYTES])


async def _aerror_body(response: httpx2.Response, deadline: float | None) -> bytes:
    until = min(time.monotonic() + _ERROR_SECONDS, deadline or float("inf"))
    body = bytearray()
    try:
        async with asyncio.timeout(max(until - time.monotonic(), 0)):
            async for part in _raw(response):
                body += part
                if len(body) > _MOST_ERROR_BYTES:
                    break
    except (httpx2.HTTPError, TimeoutError):
        pass
    if _closes(response):
        await response.extensions["network_stream"].aclose()
    return bytes(body[:_MOST_ERROR_BYTES])


def _raw(response: httpx2.Response) -> Any:
    """Return the parts of a body; reading to their end does not give the connection back yet."""
    return response.stream


def _check_form(response: httpx2.Response) -> None:
    """Refuse a web page in the place of an answer: a log-in page, or a wrong address.

    Raises:
        ServerFailedError: It is one.
    """
    if response.headers.get("content-type", "").startswith("text/html"):
        raise ServerFailedError(
            "the endpoint sent a web page instead of an answer",
            hint="`base_url` must be the root of an OpenAI API, such as `http://127.0.0.1:8000/v1`",
            status=response.status_code,
        )


def _closes(response: httpx2.Response) -> bool:
    """Tell whether the connection must not be used again: a server that failed closes it soon."""
    return response.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR


def _is_encoded(response: httpx2.Response) -> bool:
    """Return whether a proxy has compressed it, which nobody asked for."""
    return "content-encoding" in response.headers


def _refusal(response: httpx2.Response, content: bytes) -> openai.APIStatusError:
    text = _decode(content, response.charset_encoding)
    headers = [(name, value) for name, value in response.headers.raw if _is_kept(name)]
    told = httpx2.Response(
        response.status_code,
        headers=[*headers, (b"content-type", b"text/plain; charset=utf-8")],
        content=text.encode(),
        request=response.request,
    )
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = text
    if isinstance(body, dict):
        body = body.get("error", body)
    message = f"the server answered {response.status_code}"
    return openai.APIStatusError(message, response=told, body=body)


def _is_kept(name: bytes) -> bool:
    return name.lower() in _KEPT_HEADERS


def _decode(content: bytes, charset: str | None) -> str:
    """Return a text; what a server calls its character set may be none, or not what it wrote."""
    try:
        return content.decode(charset or "utf-8", "replace")
    except (LookupError, UnicodeError):
        return content.decode("utf-8", "replace")
