"""A chat request over the SDK's connection, and what comes back of it as bytes.

The SDK's own way from a body to a response costs twice what the transport does: it looks for models
to convert, merges headers and parses the address anew. Here the address and the headers are made
once. Errors are the SDK's, so that they are told in one place.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import httpx2
import openai

from langchain_car_vllm import __version__
from langchain_car_vllm.wire.transport.clients import Address

_FAILED = httpx2.codes.BAD_REQUEST
"""The first status that is a failure; redirects are followed."""


class ChatRequest:
    """Sends chat requests to one address.

    Args:
        address: Where to, and as whom.
    """

    def __init__(self, address: Address) -> None:
        self._url = httpx2.URL(f"{address.base_url}/chat/completions")
        self._headers = httpx2.Headers(
            {
                "host": self._url.netloc.decode(),
                "accept": "*/*",
                "accept-encoding": "identity",
                "connection": "keep-alive",
                "content-type": "application/json",
                "user-agent": f"langchain-car-vllm/{__version__}",
                "authorization": f"Bearer {address.api_key or 'not-needed'}",
                **_lowered(dict(address.headers)),
            }
        )

    def build(
        self, body: Mapping[str, Any], timeout: httpx2.Timeout, headers: Mapping[str, str] | None
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
            headers=httpx2.Headers({**self._headers, **_lowered(headers)})
            if headers
            else self._headers,
            content=content.encode(),
            extensions={"timeout": timeout.as_dict()},
        )


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    """Write names as ours are written, so that the user's value takes the place of ours."""
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def open_stream(http: httpx2.Client, request: httpx2.Request) -> Iterator[Iterable[bytes]]:
    """Send a request and yield the body of its response, in parts as they come.

    Raises:
        openai.APIStatusError: The server refused.
        httpx2.TransportError: It could not be reached.
    """
    response = http.send(request, stream=True)
    try:
        if response.status_code >= _FAILED:
            response.read()
            raise _refused(response)
        yield response.iter_bytes() if _is_encoded(response) else cast("Any", response.stream)
    finally:
        response.close()


@asynccontextmanager
async def aopen_stream(
    http: httpx2.AsyncClient, request: httpx2.Request
) -> AsyncIterator[AsyncIterable[bytes]]:
    """Do what `open_stream` does without blocking the event loop."""
    response = await http.send(request, stream=True)
    try:
        if response.status_code >= _FAILED:
            await response.aread()
            raise _refused(response)
        yield response.aiter_bytes() if _is_encoded(response) else cast("Any", response.stream)
    finally:
        await response.aclose()


def _is_encoded(response: httpx2.Response) -> bool:
    """Return whether a proxy has compressed it, which nobody asked for."""
    return "content-encoding" in response.headers


def _refused(response: httpx2.Response) -> openai.APIStatusError:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if isinstance(body, dict):
        body = body.get("error", body)
    message = f"the server answered {response.status_code}"
    return openai.APIStatusError(message, response=response, body=body)
