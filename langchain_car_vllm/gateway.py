"""A supervised server for other programs: an ASGI application with an address and a key that last.

The server itself has another port and another key at every start, and both are for this package
alone. The gateway passes OpenAI's and Anthropic's requests on to it under a lease, so it is started
when it is needed, shared with everybody else, and started again after a crash.
"""

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager, closing, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpcore2
import httpx2

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError, ConfigurationError, ServerCrashedError
from langchain_car_vllm.progress import OnProgress
from langchain_car_vllm.server import Lease, ServerSpec, alease
from langchain_car_vllm.server.client.keeper import Keeper
from langchain_car_vllm.support.closed_loops import ended_with_loop
from langchain_car_vllm.support.json_objects import read_json_object
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.errors import PromptTooLongError
from langchain_car_vllm.wire.request.foreign_bounds import may_need_bound, with_bound
from langchain_car_vllm.wire.request.token_count import measure_foreign_request
from langchain_car_vllm.wire.transport.connection_pools import Pools, address_of
from langchain_car_vllm.wire.transport.error_mapping import CONNECT_SECONDS, TRANSPORT_ERRORS
from langchain_car_vllm.wire.transport.passage import Passage, aenter_gate
from langchain_car_vllm.wire.transport.send import aclose
from langchain_car_vllm.wire.transport.timeouts import Clock

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HAS_KEY = "car_vllm.has_key"
"""Is set in the state of a request that sends the key."""
LARGEST_BODY = 768 * 1024 * 1024
"""Bytes. The server takes videos of up to 500 MB, which grow by a third in base64."""
# All requests that are held at a time take no more than the largest one; small ones always pass.
_SMALL_BODY = 1024 * 1024
_STALL_SECONDS = 60.0
# What is about one connection, or about a key that the server does not know.
_NOT_PASSED = frozenset(
    b"authorization x-api-key host connection keep-alive proxy-authorization transfer-encoding te "
    b"trailer upgrade content-length expect".split()
)
_NOT_RETURNED = frozenset(b"connection keep-alive transfer-encoding server date".split())


# Anything else, put behind our address, could lead to somebody else's.
_TARGET = re.compile(rb"/[!-~]*")
# What the model reads and answers at length.
_PROMPTS = re.compile(r"/v1/(chat/completions|completions|responses|messages)")
_PLACE = re.compile(rb"\A(?:(?:[a-z][a-z0-9+.-]*:)?//[^/?#]*)?[/\\]*", re.IGNORECASE)
_BEARER = re.compile(rb"^bearer +", re.IGNORECASE)


class Gateway:
    """Answers for one model.

    Args:
        spec: What to serve.
        api_key: The key that clients send, as a bearer token or in `x-api-key`.
        on_progress: Told while a request waits for the server.

    Attributes:
        endpoint: The server that answered last, None before the first answer.

    Raises:
        ConfigurationError: The key is none: everybody has an empty one.
    """

    def __init__(
        self, spec: ServerSpec, api_key: str, *, on_progress: OnProgress | None = None
    ) -> None:
        if not api_key.strip():
            raise ConfigurationError("the key of a gateway cannot be empty")
        self.endpoint: Endpoint | None = None
        self._spec = spec
        self._api_key = api_key.encode()
        self._on_progress = on_progress
        self._held = 0
        self._keeper: Keeper | None = None

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Endpoint]:
        """Start the server, and keep it, or the one that later requests lead to, in memory.

        Others may have the memory meanwhile, and the next request starts it again.

        Raises:
            CarVllmError: The server cannot be had; the type tells why.
        """
        self._keeper = keeper = Keeper(self._spec.keep_alive)
        with closing(keeper), ended_with_loop(keeper.close):
            async with self._lease() as held:
                endpoint = held.endpoint
            yield endpoint

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI 3 wants it."""
        if scope["type"] == "lifespan":
            await _acknowledge_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "reason": "this address speaks HTTP"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        is_allowed = self._is_allowed(scope["headers"])
        if scope["path"] == "/health" and not (is_allowed and self._is_up()):
            # A look at it must not start the server, nor tell a web page what is served.
            health = {"status": "healthy", "model_loaded": self._is_up()}
            named = {"model_name": self._spec.served_name} if is_allowed else {}
            await _send_json(send, HTTPStatus.OK, health | named)
            return
        if not is_allowed:
            hint = "send the key as `Authorization: Bearer ...`"
            await _send_error(send, HTTPStatus.UNAUTHORIZED, "invalid API key", hint=hint)
            return
        scope.setdefault("state", {})[HAS_KEY] = True
        if not _TARGET.fullmatch(_target(scope)):
            text = "the request does not name a valid path"
            await _send_error(send, HTTPStatus.BAD_REQUEST, text)
            return
        body, size = bytearray(), 0
        try:
            if refusal := await self._read(receive, body):
                await _send_error(send, *refusal)
                return
            whole, size = bytes(body), len(body)
            body.clear()  # it may be hundreds of megabytes, once more
            if scope["path"] == "/v1/chat/completions" and may_need_bound(whole):
                whole = await run_wait(with_bound, whole)
            await _run_until_disconnect(self._forward(scope, whole, send), receive)
        except _ClientLeftError:
            return
        finally:
            self._held -= size + len(body)

    async def _read(self, receive: Receive, body: bytearray) -> tuple[HTTPStatus, str] | None:
        """Read the body of a request, and return why it is refused.

        Raises:
            _ClientLeftError: The client left before it had sent all of it.
        """
        is_whole = False
        while not is_whole:
            try:
                message = await asyncio.wait_for(receive(), _STALL_SECONDS)
            except TimeoutError:
                return HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            piece = message.get("body", b"")
            body += piece
            self._held += len(piece)
            if len(body) > LARGEST_BODY:
                text = f"the request is longer than {LARGEST_BODY >> 20} MiB"
                return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text
            if self._held > LARGEST_BODY and len(body) > _SMALL_BODY:
                text = "other large requests are under way: try again when they are answered"
                return HTTPStatus.SERVICE_UNAVAILABLE, text
            is_whole = not message.get("more_body")
        return None

    async def _forward(self, scope: Message, body: bytes, send: Send) -> None:
        """Pass a request on; a server that crashed before it answered is asked once more."""
        begun = _Begun(send)
        for is_last in (False, True):
            try:
                async with self._lease() as held:
                    try:
                        await self._exchange(held, scope, body, begun)
                    except TRANSPORT_ERRORS as error:
                        reason = await held.aexplain()
                        may_repeat = reason is None or isinstance(reason, ServerCrashedError)
                        if begun.is_begun or is_last or not may_repeat:
                            raise (reason or _broken_connection(error)) from error
                    else:
                        return
            except CarVllmError as error:
                if begun.is_begun:  # an answer that ends early must not look whole
                    raise
                text, hint = error.message, error.hint
                await _send_error(send, _status_of(error), text, hint=hint, error=error)
                return

    async def _exchange(self, held: Lease, scope: Message, body: bytes, send: Send) -> None:
        endpoint = held.endpoint
        async with (
            _admitted(held, scope, body) as passage,
            Pools(address_of(endpoint), endpoint.is_ours).aborrow() as pool,
        ):
            try:
                await _pass_on(pool, _request_to(endpoint, scope, body), send, passage)
            except httpcore2.LocalProtocolError:  # a header that is none, for instance
                text = "the request is not valid HTTP"
                await _send_error(send, HTTPStatus.BAD_REQUEST, text)

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[Lease]:
        leasing = alease(self._spec, on_progress=self._on_progress, keeper=self._keeper)
        async with leasing as held:
            self.endpoint = held.endpoint
            yield held

    def _is_up(self) -> bool:
        endpoint = self.endpoint
        with suppress(OSError):
            return endpoint is not None and endpoint.is_ours is not None and endpoint.is_ours()
        return False

    def _is_allowed(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        sent = [_BEARER.sub(b"", v) for k, v in headers if k.lower() == b"authorization"]
        sent += [value for name, value in headers if name.lower() == b"x-api-key"]
        return any([hmac.compare_digest(key, self._api_key) for key in sent])  # noqa: C419


class _ClientLeftError(Exception):
    """Nobody is there to be answered."""


class _Begun:
    """Sends on, and knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self.is_begun = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.is_begun = True
        await self._send(message)


def _request_to(endpoint: Endpoint, scope: Message, body: bytes) -> httpcore2.Request:
    server = httpx2.URL(endpoint.base_url)
    headers = [
        *((k, v) for k, v in scope["headers"] if k.lower() not in _NOT_PASSED),
        (b"host", server.netloc),
        (b"authorization", f"Bearer {endpoint.api_key}".encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    return httpcore2.Request(
        scope["method"],
        httpcore2.URL(
            scheme=server.raw_scheme,
            host=server.raw_host,
            port=server.port,
            target=_target(scope),
        ),
        headers=headers,
        content=body,
        extensions={"timeout": {"connect": CONNECT_SECONDS}},
    )


@asynccontextmanager
async def _admitted(held: Lease, scope: Message, body: bytes) -> AsyncIterator[Passage | None]:
    """Wait for the turn of a request that the model has to read, as calls of this package do."""
    if held.gate.is_open or not _PROMPTS.fullmatch(scope["path"]):
        yield None
        return
    tokens = await run_wait(_reserved_tokens, body, held.gate.room)
    clock = Clock(held.endpoint, None, total=True)
    # A stream begins before the model does, in each API's form; the server's status tells more.
    async with aenter_gate(held.gate, tokens, clock, arrives_late=True) as passage:
        yield passage


def _reserved_tokens(body: bytes, room: int | None) -> int:
    asked = read_json_object(body)
    if asked is None:
        return 1  # the server refuses it
    return measure_foreign_request(asked).reserved_tokens(room)


async def _pass_on(
    pool: httpcore2.AsyncConnectionPool,
    request: httpcore2.Request,
    send: Send,
    passage: Passage | None,
) -> None:
    response = await pool.handle_async_request(request)
    try:
        await send(_start(response.status, _returned_headers(response.headers)))
        async for piece in response.aiter_stream():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if passage is not None:
            passage.is_over = True
        await send({"type": "http.response.body", "body": b""})
    finally:
        await aclose(response)


def _returned_headers(headers: Headers) -> Headers:
    """Return the headers of an answer as they go to the client.

    A redirect of the server's names its own address, which on another machine is anybody's.
    """
    found = [(k.lower(), v) for k, v in headers if k.lower() not in _NOT_RETURNED]
    return [
        (name, b"/" + _PLACE.sub(b"", value) if name == b"location" else value)
        for name, value in found
    ]


def _target(scope: Message) -> bytes:
    """Return path and query as they go to the server."""
    path = quote(scope["path"], safe="/:@!$&'()*+,;=").encode()
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def _acknowledge_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


async def _run_until_disconnect(answering: Awaitable[None], receive: Receive) -> None:
    """Give an answer up as soon as the client has left: the server then stops generating."""
    answer = asyncio.ensure_future(answering)
    leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not answer.done():
            answer.cancel()
            with suppress(asyncio.CancelledError):
                await answer
    if not answer.cancelled():
        answer.result()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _status_of(error: CarVllmError) -> HTTPStatus:
    if isinstance(error, PromptTooLongError):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.SERVICE_UNAVAILABLE if error.is_retryable else HTTPStatus.BAD_GATEWAY


def _broken_connection(error: Exception) -> CarVllmError:
    reason = str(error) or type(error).__name__
    broken = CarVllmError(f"the connection to the server broke: {reason}")
    broken.is_retryable = True
    return broken


def _start(status: int, headers: Headers) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _send_error(
    send: Send,
    status: HTTPStatus,
    text: str,
    *,
    hint: str | None = None,
    error: CarVllmError | None = None,
) -> None:
    """Send an error in OpenAI's form."""
    message = f"{text} (hint: {hint})" if hint else text
    kind = type(error).__name__ if error else status.phrase
    body = {"error": {"message": message, "type": kind, "code": status.value}}
    await _send_json(send, status, body)


async def _send_json(send: Send, status: HTTPStatus, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == HTTPStatus.REQUEST_TIMEOUT:
        headers.append((b"connection", b"close"))
    await send(_start(status, headers))
    await send({"type": "http.response.body", "body": body})
