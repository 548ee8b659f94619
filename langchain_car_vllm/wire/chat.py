"""The wrapped `ChatOpenAI`, which speaks the server's dialect.

The wrapped `ChatOpenAI` converts the messages; streaming goes its own way for speed. Importing
this module imports openai, so only calls do it, never construction, by way of `wire.chat_cache`.
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import (
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from typing import Any

import httpcore2  # noqa: F401 - the first client imports it, in the middle of a call
import httpx2
import jsonschema  # noqa: F401 - answers are checked with it, and its import would block a loop
import openai
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import SecretStr

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.gate import Gate, OpenGate
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.result import last_chunk, to_chunk, to_result
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.exchange.exchange import Attempt, Body, Exchange
from langchain_car_vllm.wire.exchange.strategy import exchange_for
from langchain_car_vllm.wire.reasoning import REASONING
from langchain_car_vllm.wire.request.messages import holds_media, to_server_messages
from langchain_car_vllm.wire.request.token_count import (
    PATH,
    arrives_late,
    asked_tokens,
    check_fits,
    count_request,
    may_overflow,
    read_count,
)
from langchain_car_vllm.wire.transport.clients import Address, LoopClients, sync_clients
from langchain_car_vllm.wire.transport.error_mapping import map_encoding_errors, map_errors
from langchain_car_vllm.wire.transport.passage import aentered, entered
from langchain_car_vllm.wire.transport.send import ChatRequest, aopen_stream, open_stream
from langchain_car_vllm.wire.transport.timeouts import Clock, Refusals

Headers = dict[str, str] | None


class WireChat(ChatOpenAI):
    """A ChatOpenAI that talks to one vllm-mlx endpoint.

    `ChatOpenAI` converts the messages; streaming goes its own way for speed: the raw response is
    read, and each event is parsed once from JSON straight into LangChain's chunk. Nothing of a call
    is kept: parameters come with each, as `ChatVllmMlx` merged them.

    Attributes:
        endpoint: Whom it talks to.
        http: What the synchronous client stands on.
        request: Makes the requests.
        refusals: How often a request is repeated that the server refused for the moment.
    """

    endpoint: Endpoint
    http: httpx2.Client
    request: ChatRequest
    refusals: int = 2

    def _use_responses_api(self, payload: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def _get_request_payload(
        self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the messages as the server takes them, with what the model thought."""
        messages = to_server_messages(self._convert_input(input_).to_messages(), self.endpoint)
        # Not ChatOpenAI's: it renames `max_tokens` to a name that the server ignores.
        payload = BaseChatOpenAI._get_request_payload(self, messages, stop=stop, **kwargs)  # noqa: SLF001
        for message, sent in zip(messages, payload["messages"], strict=True):
            if thought := message.additional_kwargs.get(REASONING):
                sent[REASONING] = thought
        return payload

    def _exchange(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: dict[str, Any],
        *,
        streamed: bool,
    ) -> Exchange:
        with map_encoding_errors():
            sent = self._get_request_payload(messages)["messages"]
        streamed = streamed or holds_media(messages)
        return exchange_for(self.endpoint, sent, stop, given, streamed=streamed)

    async def _aexchange(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: dict[str, Any],
        *,
        streamed: bool,
    ) -> Exchange:
        if holds_media(messages):  # files and addresses are read, which would block the loop
            return await asyncio.to_thread(self._exchange, messages, stop, given, streamed=streamed)
        return self._exchange(messages, stop, given, streamed=streamed)

    def count_tokens(
        self, messages: list[BaseMessage], tools: Sequence[dict[str, Any]] = ()
    ) -> int | None:
        """Return how many tokens a conversation has, by the server's tokenizer.

        Returns:
            The number without the chat template, None where the server does not tell.
        """
        try:
            sent = self._get_request_payload(messages)["messages"]
        except InvalidRequestError:  # such as an image that cannot be fetched
            return None
        return self._count({"messages": sent, "tools": list(tools)})

    def _count(self, body: Body) -> int | None:
        request = count_request(self.model_name, body["messages"], body.get("tools") or ())
        try:
            return read_count(self.root_client.post(PATH, **request))
        except (openai.APIError, ValueError):
            return None

    async def _acount(self, body: Body) -> int | None:
        request = count_request(self.model_name, body["messages"], body.get("tools") or ())
        clients = await self.async_client.current()
        try:
            return read_count(await clients.sdk.post(PATH, **request))
        except (openai.APIError, ValueError):
            return None

    def _check_fits(self, exchange: Exchange, given: dict[str, Any]) -> None:
        limit = self._limit(given)
        if may_overflow(exchange.body, limit):
            check_fits(self._count(exchange.body), limit)

    async def _acheck_fits(self, exchange: Exchange, given: dict[str, Any]) -> None:
        limit = self._limit(given)
        if may_overflow(exchange.body, limit):
            check_fits(await self._acount(exchange.body), limit)

    def _asked_tokens(self, body: Body, room: int | None) -> int:
        """Return what a request asks for in all; what the memory never holds is refused."""
        tokens = asked_tokens(body)
        if room is not None and tokens > room:
            tokens = asked_tokens(body, self._count(body), room)
        return tokens

    async def _aasked_tokens(self, body: Body, room: int | None) -> int:
        tokens = asked_tokens(body)
        if room is not None and tokens > room:
            tokens = asked_tokens(body, await self._acount(body), room)
        return tokens

    def _limit(self, given: dict[str, Any]) -> int | None:
        """Return how many tokens a prompt may have: the model's window, or the user's own limit."""
        known = (self.endpoint.context_window, given.get("max_input_tokens"))
        return min((limit for limit in known if limit is not None), default=None)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        gate: Gate = kwargs.pop("gate", None) or OpenGate()
        exchange = self._exchange(messages, stop, kwargs, streamed=False)
        self._check_fits(exchange, kwargs)
        clock = Clock(self.endpoint, kwargs.get("timeout"), total=True)
        deltas = list(self._deltas(exchange, clock, gate, kwargs.get("extra_headers")))
        return to_result(deltas, exchange.answer_end())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        gate: Gate = kwargs.pop("gate", None) or OpenGate()
        exchange = await self._aexchange(messages, stop, kwargs, streamed=False)
        await self._acheck_fits(exchange, kwargs)
        clock = Clock(self.endpoint, kwargs.get("timeout"), total=True)
        deltas = [
            delta
            async for delta in self._adeltas(exchange, clock, gate, kwargs.get("extra_headers"))
        ]
        return to_result(deltas, exchange.answer_end())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Generator[ChatGenerationChunk, None, None]:
        gate: Gate = kwargs.pop("gate", None) or OpenGate()
        exchange = self._exchange(messages, stop, kwargs, streamed=True)
        self._check_fits(exchange, kwargs)
        clock = Clock(self.endpoint, kwargs.get("timeout"), total=False)
        with closing(self._deltas(exchange, clock, gate, kwargs.get("extra_headers"))) as deltas:
            for delta in deltas:
                chunk = to_chunk(delta)
                if run_manager:
                    run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk
        yield _end_chunk(exchange, kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        gate: Gate = kwargs.pop("gate", None) or OpenGate()
        exchange = await self._aexchange(messages, stop, kwargs, streamed=True)
        await self._acheck_fits(exchange, kwargs)
        clock = Clock(self.endpoint, kwargs.get("timeout"), total=False)
        deltas = self._adeltas(exchange, clock, gate, kwargs.get("extra_headers"))
        async with aclosing(deltas):
            async for delta in deltas:
                chunk = to_chunk(delta)
                if run_manager:
                    await run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk
        yield _end_chunk(exchange, kwargs)

    def _deltas(
        self, exchange: Exchange, clock: Clock, gate: Gate, headers: Headers
    ) -> Generator[Delta, None, None]:
        for attempt in exchange.attempts():
            tokens = self._asked_tokens(attempt.body, gate.room)
            with (
                _forgive(attempt),
                map_errors(self.endpoint, clock.timeout, attempt.explain),
                entered(gate, tokens, clock, arrives_late=arrives_late(attempt.body)) as passage,
            ):
                with self._sent(attempt, clock, headers) as body:
                    for data in body:
                        deltas = attempt.feed(data)
                        clock.check(attempt.answer.events)
                        passage.note(attempt.answer.events)
                        if deltas:
                            yield from deltas
                            clock.resume()
                        if attempt.done:
                            break
                passage.is_over = not attempt.done
                yield from attempt.end()

    async def _adeltas(
        self, exchange: Exchange, clock: Clock, gate: Gate, headers: Headers
    ) -> AsyncGenerator[Delta, None]:
        for attempt in exchange.attempts():
            tokens = await self._aasked_tokens(attempt.body, gate.room)
            with _forgive(attempt), map_errors(self.endpoint, clock.timeout, attempt.explain):
                async with aentered(
                    gate, tokens, clock, arrives_late=arrives_late(attempt.body)
                ) as passage:
                    async with self._asent(attempt, clock, headers) as body:
                        async for data in body:
                            deltas = attempt.feed(data)
                            clock.check(attempt.answer.events)
                            passage.note(attempt.answer.events)
                            for delta in deltas:
                                yield delta
                            if deltas:
                                clock.resume()
                            if attempt.done:
                                break
                    passage.is_over = not attempt.done
                    for delta in attempt.end():
                        yield delta

    @contextmanager
    def _sent(self, attempt: Attempt, clock: Clock, headers: Headers) -> Iterator[Iterable[bytes]]:
        refusals = Refusals(self.refusals)
        with ExitStack() as stack:
            while True:
                request = self._request(attempt, clock, headers)
                try:
                    body = stack.enter_context(open_stream(self.http, request))
                    break
                except openai.APIStatusError as error:
                    time.sleep(refusals.wait(error))
            yield body

    @asynccontextmanager
    async def _asent(
        self, attempt: Attempt, clock: Clock, headers: Headers
    ) -> AsyncIterator[AsyncIterable[bytes]]:
        clients = await self.async_client.current()
        refusals = Refusals(self.refusals)
        async with AsyncExitStack() as stack:
            while True:
                request = self._request(attempt, clock, headers)
                try:
                    body = await stack.enter_async_context(aopen_stream(clients.http, request))
                    break
                except openai.APIStatusError as error:
                    await asyncio.sleep(refusals.wait(error))
            yield body

    def _request(self, attempt: Attempt, clock: Clock, headers: Headers) -> httpx2.Request:
        # Whole answers are read as they come too: the body's `stream` alone decides what comes.
        with map_encoding_errors():
            return self.request.build(attempt.body, clock.transport, headers)


def _end_chunk(exchange: Exchange, given: dict[str, Any]) -> ChatGenerationChunk:
    end = exchange.answer_end()
    return last_chunk(end._replace(usage=None) if given.get("stream_usage") is False else end)


@contextmanager
def _forgive(attempt: Attempt) -> Iterator[None]:
    """Go on where the exchange has another attempt for what went wrong."""
    try:
        yield
    except CarVllmError:
        if not attempt.is_forgiven:
            raise


def build(endpoint: Endpoint, headers: tuple[tuple[str, str], ...], refusals: int) -> WireChat:
    """Return a new wrapped `ChatOpenAI`; `wire.chat_cache` keeps them."""
    address = Address(endpoint.base_url, endpoint.api_key, headers)
    clients = sync_clients(address, endpoint.is_ours)
    loops = LoopClients(address, endpoint.is_ours)
    return WireChat(
        endpoint=endpoint,
        http=clients.http,
        request=ChatRequest(address),
        refusals=refusals,
        model=endpoint.served_model,
        base_url=endpoint.base_url,
        api_key=SecretStr("not-needed"),
        root_client=clients.sdk,
        client=clients.sdk,  # the import of its `chat` takes as long as a call
        root_async_client=loops,
        async_client=loops,
        use_responses_api=False,
        output_version="v0",
        stream_chunk_timeout=None,
        profile={},
        cache=False,
    )
