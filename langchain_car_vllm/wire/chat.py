"""The wrapped `ChatOpenAI`, which speaks the server's dialect.

The wrapped `ChatOpenAI` converts the messages; requests go their own way for speed. Importing this
module imports openai, so only calls do it, never construction, by way of `wire.chat_cache`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager, aclosing, closing
from functools import partial
from typing import Any, NamedTuple

import httpcore2
import jsonschema  # noqa: F401 - answers are checked with it, and its import would block a loop
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import SecretStr

from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.gate import Gate, OpenGate
from langchain_car_vllm.support.secret_names import secrets_of_body
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.result import (
    AnswerEnd,
    add_times,
    last_chunk,
    to_chunk,
    to_result,
)
from langchain_car_vllm.wire.counting_chat import CountingChat
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.exchange.attempt import Attempt
from langchain_car_vllm.wire.exchange.exchange import Exchange
from langchain_car_vllm.wire.exchange.strategy import exchange_for
from langchain_car_vllm.wire.request.media_access import MediaAccess
from langchain_car_vllm.wire.request.messages import holds_media
from langchain_car_vllm.wire.request.token_count import PromptLimit, arrives_late
from langchain_car_vllm.wire.transport.connection_pools import Pools, address_of
from langchain_car_vllm.wire.transport.error_mapping import map_encoding_errors, map_errors
from langchain_car_vllm.wire.transport.passage import aenter_gate, enter_gate
from langchain_car_vllm.wire.transport.send import (
    ChatRequest,
    aopen_stream,
    aread_rest,
    open_stream,
    read_rest,
)
from langchain_car_vllm.wire.transport.simple_engine import (
    BusyWaits,
    aturn,
    note_cut,
    turn,
)
from langchain_car_vllm.wire.transport.timeouts import Clock


class Terms(NamedTuple):
    """What holds for all requests of one call.

    Attributes:
        clock: Ends it in time, and measures it.
        gate: Tells when a request may be sent.
        headers: The call's own ones.
        secrets: What its body holds under names of secrets, which no error shows.
        prompt_limit: How many tokens a prompt may have.
    """

    clock: Clock
    gate: Gate
    headers: dict[str, str] | None
    secrets: dict[str, str]
    prompt_limit: PromptLimit


class WireChat(CountingChat):
    """A ChatOpenAI that talks to one vllm-mlx endpoint.

    `ChatOpenAI` converts the messages; requests go their own way for speed: the raw response is
    read, and each event is parsed once from JSON straight into LangChain's chunk. Nothing of a call
    is kept: parameters come with each, as `ChatVllmMlx` merged them.

    Attributes:
        pools: The connections that requests go out over.
        request: Makes the requests.
        refusals: How often a request is repeated that the server refused for the moment.
    """

    pools: Pools
    request: ChatRequest
    refusals: int = 2

    def _terms(self, given: dict[str, Any], *, total: bool) -> Terms:
        """Return a call's terms, and take out of its parameters what is for nothing else."""
        stopwatch, timeout = given.pop("stopwatch", None), given.get("timeout")
        return Terms(
            clock=Clock(self.endpoint, timeout, total=total, stopwatch=stopwatch),
            gate=given.pop("gate", None) or OpenGate(),
            headers=given.get("extra_headers"),
            secrets=secrets_of_body(given.get("extra_body")),
            prompt_limit=self._limit(given),
        )

    def _map_errors(self, exchange: Exchange, terms: Terms) -> AbstractContextManager[None]:
        def sent() -> dict[str, str]:
            return {**dict(self.address.headers), **(terms.headers or {}), **terms.secrets}

        return map_errors(self.endpoint, terms.clock.timeout, exchange.explain, sent=sent)

    def _answer_end(self, exchange: Exchange, terms: Terms) -> AnswerEnd:
        return add_times(exchange.answer_end(), terms.clock.stopwatch, self.endpoint.draft)

    def _exchange(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: dict[str, Any],
        clock: Clock,
        *,
        streamed: bool,
    ) -> Exchange:
        access = MediaAccess(given.get("fetch_media"), clock.deadline)
        with map_encoding_errors():
            sent = self._sent_messages(messages, access)
        clock.resume()
        streamed = streamed or holds_media(messages)
        return exchange_for(self.endpoint, sent, stop, given, streamed=streamed)

    async def _aexchange(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: dict[str, Any],
        clock: Clock,
        *,
        streamed: bool,
    ) -> Exchange:
        if holds_media(messages):  # files and addresses are read, which would block the loop
            return await run_wait(self._exchange, messages, stop, given, clock, streamed=streamed)
        return self._exchange(messages, stop, given, clock, streamed=streamed)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        terms = self._terms(kwargs, total=True)
        exchange = self._exchange(messages, stop, kwargs, terms.clock, streamed=False)
        deltas = list(self._deltas(exchange, terms))
        return to_result(deltas, self._answer_end(exchange, terms))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        terms = self._terms(kwargs, total=True)
        exchange = await self._aexchange(messages, stop, kwargs, terms.clock, streamed=False)
        deltas = [delta async for delta in self._adeltas(exchange, terms)]
        return to_result(deltas, self._answer_end(exchange, terms))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Generator[ChatGenerationChunk, None, None]:
        terms = self._terms(kwargs, total=False)
        exchange = self._exchange(messages, stop, kwargs, terms.clock, streamed=True)
        with closing(self._deltas(exchange, terms)) as deltas:
            for delta in deltas:
                chunk = to_chunk(delta)
                if run_manager:
                    run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk
        yield _end_chunk(self._answer_end(exchange, terms), kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        terms = self._terms(kwargs, total=False)
        exchange = await self._aexchange(messages, stop, kwargs, terms.clock, streamed=True)
        deltas = self._adeltas(exchange, terms)
        async with aclosing(deltas):
            async for delta in deltas:
                chunk = to_chunk(delta)
                if run_manager:
                    await run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk
        yield _end_chunk(self._answer_end(exchange, terms), kwargs)

    def _deltas(self, exchange: Exchange, terms: Terms) -> Generator[Delta, None, None]:
        for attempt in exchange.attempts():
            waits = BusyWaits(self.endpoint, self.refusals)
            with exchange.forgive(), self._map_errors(exchange, terms):
                while True:
                    try:
                        yield from self._answer(attempt, terms)
                        break
                    except ServerFailedError as error:
                        time.sleep(waits.wait(error, attempt.answer.events))
                        terms.clock.check(0)
                        attempt.restart()

    def _answer(self, attempt: Attempt, terms: Terms) -> Generator[Delta, None, None]:
        clock, gate = terms.clock, terms.gate
        tokens = self._asked_tokens(attempt.body, terms.prompt_limit, gate.room)
        is_late, build = arrives_late(attempt.body), partial(self._request, attempt, terms)
        with enter_gate(gate, tokens, clock, arrives_late=is_late) as passage:
            with (
                turn(self.endpoint, clock.deadline),
                self.pools.borrow() as pool,
                open_stream(pool, build, clock.deadline, self.refusals, clock.end) as body,
            ):
                parts = iter(body)
                for data in parts:
                    deltas = attempt.feed(data)
                    clock.check(attempt.answer.events)
                    passage.note(attempt.answer.events)
                    if deltas:
                        yield from deltas
                        clock.resume()
                    if attempt.done:
                        note_cut(self.endpoint)
                        break
                    if attempt.is_ended:
                        read_rest(parts)
            passage.is_over = not attempt.done
            yield from attempt.end()

    async def _adeltas(self, exchange: Exchange, terms: Terms) -> AsyncGenerator[Delta, None]:
        for attempt in exchange.attempts():
            waits = BusyWaits(self.endpoint, self.refusals)
            with exchange.forgive(), self._map_errors(exchange, terms):
                while True:
                    try:
                        async with aclosing(self._aanswer(attempt, terms)) as deltas:
                            async for delta in deltas:
                                yield delta
                        break
                    except ServerFailedError as error:
                        await asyncio.sleep(waits.wait(error, attempt.answer.events))
                        terms.clock.check(0)
                        attempt.restart()

    async def _aanswer(self, attempt: Attempt, terms: Terms) -> AsyncGenerator[Delta, None]:
        clock, gate = terms.clock, terms.gate
        tokens = await self._aasked_tokens(attempt.body, terms.prompt_limit, gate.room)
        is_late, build = arrives_late(attempt.body), partial(self._request, attempt, terms)
        async with aenter_gate(gate, tokens, clock, arrives_late=is_late) as passage:
            async with (
                aturn(self.endpoint, clock.deadline),
                self.pools.aborrow() as pool,
                aopen_stream(pool, build, clock.deadline, self.refusals, clock.end) as body,
            ):
                parts = aiter(body)
                async for data in parts:
                    deltas = attempt.feed(data)
                    clock.check(attempt.answer.events)
                    passage.note(attempt.answer.events)
                    for delta in deltas:
                        yield delta
                    if deltas:
                        clock.resume()
                    if attempt.done:
                        note_cut(self.endpoint)
                        break
                    if attempt.is_ended:
                        await aread_rest(parts)
            passage.is_over = not attempt.done
            for delta in attempt.end():
                yield delta

    def _request(self, attempt: Attempt, terms: Terms) -> httpcore2.Request:
        # Whole answers are read as they come too: the body's `stream` alone decides what comes.
        with map_encoding_errors(attempt.body):
            return self.request.build(attempt.body, terms.clock.step_timeouts, terms.headers)


def _end_chunk(end: AnswerEnd, given: dict[str, Any]) -> ChatGenerationChunk:
    return last_chunk(end._replace(usage=None) if given.get("stream_usage") is False else end)


def build(endpoint: Endpoint, headers: Headers, refusals: int) -> WireChat:
    """Return a new wrapped `ChatOpenAI`; `wire.chat_cache` keeps them."""
    address = address_of(endpoint, headers)
    nobody = object()  # stands where ChatOpenAI would make clients of the SDK
    return WireChat(
        endpoint=endpoint,
        address=address,
        pools=Pools(address, endpoint.is_ours),
        request=ChatRequest(address),
        refusals=refusals,
        model=endpoint.served_model,
        base_url=endpoint.shown_url,
        api_key=SecretStr("not-needed"),
        root_client=nobody,
        client=nobody,
        root_async_client=nobody,
        async_client=nobody,
        use_responses_api=False,
        output_version="v0",
        stream_chunk_timeout=None,
        profile={},
        cache=False,
    )
