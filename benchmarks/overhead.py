"""What a client costs, against a server that answers at once, and against the limit."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.clients import LIMIT, OLLAMA, OPENAI, OURS, Clients, add_limit
from benchmarks.home import replayed
from benchmarks.replay import TOKENS
from benchmarks.rounds import Measured, ainterleaved, interleaved, medians, ratio
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server

ROUNDS = 11
CALLS = 20
"""Of one client in a row: warm means that it has just been used."""
_MICRO, _MILLI = 1e6, 1e3


def _stream_checks(times: Measured) -> tuple[Check, ...]:
    return (
        Check("of the limit", ratio(times, OURS, LIMIT), 1.25),
        Check("of ChatOllama's", ratio(times, OURS, OLLAMA), 0.7),
        Check("of ChatOpenAI's", ratio(times, OURS, OPENAI), 0.2),
    )


def _whole_checks(times: Measured) -> tuple[Check, ...]:
    return (
        Check("of the limit", ratio(times, OURS, LIMIT), 1.5),
        Check("of ChatOpenAI's", ratio(times, OURS, OPENAI), 0.65),
    )


def _again(call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
    async def repeat() -> None:
        for _ in range(CALLS):
            await call()

    return repeat


async def _asynchronous(clients: Clients) -> list[Row]:
    await clients.open()
    streams = add_limit(await ainterleaved(clients.astreams(), ROUNDS))
    calls = {name: _again(call) for name, call in clients.ainvokes().items()}
    whole = add_limit(await ainterleaved(calls, ROUNDS))
    return [_stream_row("`astream`", streams), _whole_row("`ainvoke`", whole)]


def _stream_row(what: str, times: Measured) -> Row:
    figures = medians(times, _MICRO / TOKENS)
    return Row("overhead", f"{what}, per chunk", "us", figures, _stream_checks(times))


def _whole_row(what: str, times: Measured) -> Row:
    figures = medians(times, _MILLI / CALLS)
    return Row("overhead", f"{what}, warm", "ms", figures, _whole_checks(times))


def rows() -> list[Row]:
    """Measure."""
    with replayed() as model:
        clients = Clients(model, ensure_server(ChatVllmMlx(model=model)._spec()))
        streams = add_limit(interleaved(clients.streams(), ROUNDS))
        calls = {
            name: lambda c=call: [c() for _ in range(CALLS)]
            for name, call in clients.invokes().items()
        }
        whole = add_limit(interleaved(calls, ROUNDS))
        return [
            _stream_row("`stream`", streams),
            _whole_row("`invoke`", whole),
            *asyncio.run(_asynchronous(clients)),
        ]
