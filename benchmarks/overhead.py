"""What a client costs, against a server that answers at once."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import Any

import httpx2
import openai
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

from benchmarks.home import replayed
from benchmarks.replay import TOKENS
from benchmarks.rounds import Measured, ainterleaved, interleaved, medians, ratio
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server import ensure_server

OURS, OPENAI, OLLAMA = "ChatVllmMlx", "ChatOpenAI", "ChatOllama"
RAW, SDK = "raw HTTP", "OpenAI SDK"
ROUNDS = 11
CALLS = 20
"""Of one client in a row: warm means that it has just been used."""
COMPANY = 16
GROWTH = (1, 4, 16, 64)
_MESSAGES = [{"role": "user", "content": "hi"}]
_MICRO, _MILLI = 1e6, 1e3


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
            SDK: self._sdk_stream,
            **{n: lambda m=m: _drain(m.stream("hi")) for n, m in self.models.items()},
        }

    def astreams(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return the same for an event loop."""
        return {
            RAW: self._raw_astream,
            SDK: self._sdk_astream,
            **{n: lambda m=m: _adrain(m.astream("hi")) for n, m in self.models.items()},
        }

    def invokes(self) -> dict[str, Callable[[], object]]:
        """Return what fetches one whole answer, by client."""
        return {
            RAW: lambda: self._http.post(self._url, json=self._body, headers=self._headers).json(),
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
        _drain(self._sdk.chat.completions.create(**self._body, stream=True))

    async def _sdk_astream(self) -> None:
        assert self._asdk is not None
        await _adrain(await self._asdk.chat.completions.create(**self._body, stream=True))


def _drain(chunks: Any) -> None:
    for _ in chunks:
        pass


async def _adrain(chunks: AsyncIterator[Any]) -> None:
    async for _ in chunks:
        pass


def _together(call: Callable[[], Awaitable[object]], many: int) -> Callable[[], Awaitable[object]]:
    return lambda: asyncio.gather(*(call() for _ in range(many)))


def _stream_checks(times: Measured) -> tuple[Check, ...]:
    return (
        Check("of ChatOllama's", ratio(times, OURS, OLLAMA), 0.9),
        Check("of ChatOpenAI's", ratio(times, OURS, OPENAI), 0.3),
    )


def _whole_checks(times: Measured) -> tuple[Check, ...]:
    return (Check("of ChatOpenAI's", ratio(times, OURS, OPENAI), 0.8),)


async def _growth(streams: Mapping[str, Callable[[], Awaitable[object]]]) -> Row:
    """Return what a chunk costs as the company grows.

    LangChain keeps all chunks of a stream until it ends, so that many streams make the collector
    walk through the whole program again and again. What was there before is frozen to leave that
    out; `kept` tells what it comes to with the program's heap.
    """
    heap = await _crowded({n: streams[n] for n in (OURS, OLLAMA)}, (GROWTH[0], GROWTH[-1]))
    gc.collect()
    gc.freeze()
    times = await _crowded({n: streams[n] for n in (RAW, OURS, OLLAMA)}, GROWTH)
    gc.unfreeze()
    series = {
        name: [median(times[f"{name} {many}"]) * _MICRO / TOKENS / GROWTH[-1] for many in GROWTH]
        for name in (RAW, OURS, OLLAMA)
    }
    figures = {name: _grown(times, name) for name in series}
    figures |= {f"{name}, heap not frozen": _grown(heap, name) for name in (OURS, OLLAMA)}
    return Row(
        section="overhead",
        what=f"`astream`, per chunk, {GROWTH[-1]} at once against one",
        unit="times",
        figures=figures,
        checks=(Check("of one alone", figures[OURS], 1.3),),
        series={"at once": [float(many) for many in GROWTH], **series},
    )


async def _crowded(
    streams: Mapping[str, Callable[[], Awaitable[object]]], crowds: Sequence[int]
) -> Measured:
    """Measure the same number of streams, so many of them at once and the rest after them."""
    calls = {
        f"{name} {many}": _again(_together(call, many), GROWTH[-1] // many)
        for name, call in streams.items()
        for many in crowds
    }
    return await ainterleaved(calls, 3)


def _grown(times: Measured, name: str) -> float:
    return ratio(times, f"{name} {GROWTH[-1]}", f"{name} {GROWTH[0]}")


def _again(call: Callable[[], Awaitable[object]], many: int) -> Callable[[], Awaitable[object]]:
    async def repeated() -> None:
        for _ in range(many):
            await call()

    return repeated


async def _asynchronous(clients: Clients) -> list[Row]:
    await clients.open()
    streams = clients.astreams()
    alone = await ainterleaved(streams, ROUNDS)
    crowd = await ainterleaved({n: _together(c, COMPANY) for n, c in streams.items()}, 5)
    whole = await ainterleaved(
        {name: _again(call, CALLS) for name, call in clients.ainvokes().items()}, ROUNDS
    )
    per_chunk = _MICRO / TOKENS
    return [
        _row("`astream`, per chunk", "us", medians(alone, per_chunk), _stream_checks(alone)),
        _row(
            f"`astream`, per chunk, {COMPANY} at once",
            "us",
            medians(crowd, per_chunk / COMPANY),
            _stream_checks(crowd),
        ),
        await _growth(streams),
        _row("`ainvoke`, warm", "ms", medians(whole, _MILLI / CALLS), _whole_checks(whole)),
    ]


def _row(what: str, unit: str, figures: dict[str, float], checks: tuple[Check, ...]) -> Row:
    return Row("overhead", what, unit, figures, checks)


def rows() -> list[Row]:
    """Measure."""
    with replayed() as model:
        clients = Clients(model, ensure_server(ChatVllmMlx(model=model)._spec()))
        streams = interleaved(clients.streams(), ROUNDS)
        whole = interleaved(
            {
                name: lambda c=call: [c() for _ in range(CALLS)]
                for name, call in clients.invokes().items()
            },
            ROUNDS,
        )
        per_chunk = _MICRO / TOKENS
        return [
            _row("`stream`, per chunk", "us", medians(streams, per_chunk), _stream_checks(streams)),
            *asyncio.run(_asynchronous(clients)),
            _row("`invoke`, warm", "ms", medians(whole, _MILLI / CALLS), _whole_checks(whole)),
        ]
