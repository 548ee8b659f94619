"""The same question through every client, and what any of them must cost at least."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx2
import openai
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from benchmarks.replay import TOKENS
from benchmarks.rounds import Measured
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint

OURS, OPENAI, OLLAMA = "ChatVllmMlx", "ChatOpenAI", "ChatOllama"
RAW, SDK, BARE = "raw HTTP", "OpenAI SDK", "LangChain alone"
LIMIT = "the limit"
"""Raw HTTP with one parse of JSON per event, and LangChain alone: what no provider can go below."""
_MESSAGES = [{"role": "user", "content": "hi"}]


def add_limit(times: Measured) -> Measured:
    """Return the times with those of the limit, round by round."""
    limit = [raw + bare for raw, bare in zip(times[RAW], times[BARE], strict=True)]
    return {**times, LIMIT: limit}


class ReadyModel(BaseChatModel):
    """A chat model without any work of its own: its chunks and answers are there already."""

    _chunks: list[ChatGenerationChunk] = PrivateAttr(
        default_factory=lambda: [
            ChatGenerationChunk(message=AIMessageChunk("tok ")) for _ in range(TOKENS)
        ]
    )
    _answer: ChatResult = PrivateAttr(
        default_factory=lambda: ChatResult(generations=[ChatGeneration(message=AIMessage("hello"))])
    )

    @property
    def _llm_type(self) -> str:
        return "ready"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:  # noqa: ARG002
        return self._answer

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:  # noqa: ARG002
        return self._answer

    def _stream(
        self,
        messages: list[BaseMessage],  # noqa: ARG002
        *_: Any,
        **__: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks

    async def _astream(
        self,
        messages: list[BaseMessage],  # noqa: ARG002
        *_: Any,
        **__: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks:
            yield chunk


class Clients:
    """The same question through each client.

    Args:
        model: The directory that is served.
        endpoint: Where it is served.
    """

    def __init__(self, model: str, endpoint: Endpoint) -> None:
        root = endpoint.base_url.removesuffix("/v1")
        self._url = f"{endpoint.base_url}/chat/completions"
        self._body: dict[str, Any] = {"model": endpoint.served_model, "messages": _MESSAGES}
        self._headers = {"authorization": f"Bearer {endpoint.api_key}"}
        self._given = {"base_url": endpoint.base_url, "api_key": endpoint.api_key}
        self.models = {
            OURS: ChatVllmMlx(model=model),
            OPENAI: ChatOpenAI(model=endpoint.served_model, stream_usage=True, **self._given),
            OLLAMA: ChatOllama(model=endpoint.served_model, base_url=root),
        }
        self._ready = ReadyModel()
        self._http = httpx2.Client(trust_env=False, timeout=60)
        self._sdk = openai.OpenAI(**self._given)
        self._ahttp: httpx2.AsyncClient | None = None
        self._asdk: openai.AsyncOpenAI | None = None

    async def open(self) -> None:
        """Make the asynchronous clients, which belong to the running loop."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        self._ahttp = httpx2.AsyncClient(trust_env=False, timeout=60, limits=limits)
        self._asdk = openai.AsyncOpenAI(**self._given)

    def streams(self) -> dict[str, Callable[[], object]]:
        """Return what reads one stream to its end, by client."""
        return {
            RAW: self._raw_stream,
            BARE: lambda: drain(self._ready.stream("hi")),
            SDK: self._sdk_stream,
            **{n: lambda m=m: drain(m.stream("hi")) for n, m in self.models.items()},
        }

    def astreams(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return the same for an event loop."""
        return {
            RAW: self._raw_astream,
            BARE: lambda: adrain(self._ready.astream("hi")),
            SDK: self._sdk_astream,
            **{n: lambda m=m: adrain(m.astream("hi")) for n, m in self.models.items()},
        }

    def invokes(self) -> dict[str, Callable[[], object]]:
        """Return what fetches one whole answer, by client."""
        return {
            RAW: lambda: self._http.post(self._url, json=self._body, headers=self._headers).json(),
            BARE: lambda: self._ready.invoke("hi"),
            SDK: lambda: self._sdk.chat.completions.create(**self._body),
            **{n: lambda m=m: m.invoke("hi") for n, m in self.models.items()},
        }

    def ainvokes(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return the same for an event loop."""
        assert self._ahttp is not None
        assert self._asdk is not None
        http, sdk = self._ahttp, self._asdk
        return {
            RAW: lambda: http.post(self._url, json=self._body, headers=self._headers),
            BARE: lambda: self._ready.ainvoke("hi"),
            SDK: lambda: sdk.chat.completions.create(**self._body),
            **{n: lambda m=m: m.ainvoke("hi") for n, m in self.models.items()},
        }

    def _raw_stream(self) -> None:
        body = {**self._body, "stream": True}
        with self._http.stream("POST", self._url, json=body, headers=self._headers) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    json.loads(line[6:])

    async def _raw_astream(self) -> None:
        assert self._ahttp is not None
        body = {**self._body, "stream": True}
        request = self._ahttp.stream("POST", self._url, json=body, headers=self._headers)
        async with request as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    json.loads(line[6:])

    def _sdk_stream(self) -> None:
        drain(self._sdk.chat.completions.create(**self._body, stream=True))

    async def _sdk_astream(self) -> None:
        assert self._asdk is not None
        await adrain(await self._asdk.chat.completions.create(**self._body, stream=True))


def drain(chunks: Any) -> None:
    """Read a stream to its end."""
    for _ in chunks:
        pass


async def adrain(chunks: AsyncIterator[Any]) -> None:
    """Read a stream to its end in an event loop."""
    async for _ in chunks:
        pass
