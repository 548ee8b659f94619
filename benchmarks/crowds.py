"""Many streams at once: what a chunk costs then, and what memory they take."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median

from benchmarks.clients import BARE, OLLAMA, OPENAI, OURS, RAW, Clients
from benchmarks.home import ROOT, replayed
from benchmarks.replay import TOKENS
from benchmarks.rounds import Measured, ainterleaved, medians, ratio
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server

COMPANY = 16
GROWTH = (1, 4, 16, 64)
LONG = 2000
"""Chunks of a long stream."""
_MICRO = 1e6
_HOLD = """
import asyncio, json, sys
sys.path.insert(0, {root!r})
import psutil
from benchmarks.clients import Clients
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server

clients = Clients({model!r}, ensure_server(ChatVllmMlx(model={model!r})._spec()))
model = clients.models[{name!r}]
options = {{"max_tokens": {long}}}
if {name!r} == "ChatOllama":
    options = {{"options": {{"num_predict": {long}}}}}

async def held():
    return [chunk async for chunk in model.astream("hi", **options)]

async def main():
    await held()
    before = psutil.Process().memory_info().rss
    kept = await asyncio.gather(*(held() for _ in range({many})))
    assert min(map(len, kept)) >= {long}, min(map(len, kept))
    return psutil.Process().memory_info().rss - before

print(json.dumps(asyncio.run(main())))
"""


def _together(call: Callable[[], Awaitable[object]], many: int) -> Callable[[], Awaitable[object]]:
    return lambda: asyncio.gather(*(call() for _ in range(many)))


def _in_turns(call: Callable[[], Awaitable[object]], many: int) -> Callable[[], Awaitable[object]]:
    async def repeat() -> None:
        for _ in range(many):
            await call()

    return repeat


async def _crowded(
    streams: Mapping[str, Callable[[], Awaitable[object]]], crowds: Sequence[int]
) -> Measured:
    """Measure the same number of streams, so many of them at once and the rest after them."""
    calls = {
        f"{name} {many}": _in_turns(_together(call, many), GROWTH[-1] // many)
        for name, call in streams.items()
        for many in crowds
    }
    return await ainterleaved(calls, 3)


def _grown(times: Measured, name: str) -> float:
    return ratio(times, f"{name} {GROWTH[-1]}", f"{name} {GROWTH[0]}")


async def _growth(streams: Mapping[str, Callable[[], Awaitable[object]]]) -> list[Row]:
    """Return what a chunk costs as the company grows.

    LangChain keeps all chunks of a stream until it ends, so that many streams make the collector
    walk through the whole program again and again. What was there before is frozen to leave that
    out; "heap not frozen" is what it comes to with the program's heap.
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
    kept = _grown(heap, OURS) / _grown(heap, OLLAMA)
    at_once = {name: heap[f"{name} {GROWTH[-1]}"] for name in (OURS, OLLAMA)}
    return [
        Row(
            section="crowds",
            what=f"`astream`, per chunk, {GROWTH[-1]} at once",
            unit="us",
            figures=medians(at_once, _MICRO / TOKENS / GROWTH[-1]),
            checks=(Check("of ChatOllama's", ratio(at_once, OURS, OLLAMA), 0.55),),
        ),
        Row(
            section="crowds",
            what=f"`astream`, per chunk, {GROWTH[-1]} at once against one",
            unit="times",
            figures=figures,
            checks=(
                Check("of one alone", figures[OURS], 1.3),
                Check("of ChatOllama's growth, heap not frozen", kept, 1.0),
            ),
            series={"at once": [float(many) for many in GROWTH], **series},
        ),
    ]


async def _speed(clients: Clients) -> list[Row]:
    await clients.open()
    streams = {name: call for name, call in clients.astreams().items() if name != BARE}
    crowd = await ainterleaved({n: _together(c, COMPANY) for n, c in streams.items()}, 5)
    return [
        Row(
            section="crowds",
            what=f"`astream`, per chunk, {COMPANY} at once",
            unit="us",
            figures=medians(crowd, _MICRO / TOKENS / COMPANY),
            checks=(
                Check("of ChatOllama's", ratio(crowd, OURS, OLLAMA), 0.55),
                Check("of ChatOpenAI's", ratio(crowd, OURS, OPENAI), 0.2),
            ),
        ),
        *await _growth(streams),
    ]


def _held_bytes(model: str, name: str) -> float:
    """Return what a process grows by while it holds the chunks of many long streams."""
    code = _HOLD.format(root=str(ROOT), model=model, name=name, long=LONG, many=GROWTH[-1])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _memory(model: str) -> Row:
    grown = {n: median(_held_bytes(model, n) for _ in range(3)) / 1e6 for n in (OURS, OLLAMA)}
    return Row(
        section="crowds",
        what=f"{GROWTH[-1]} streams of {LONG:,} chunks, held",
        unit="MB",
        figures=grown,
        checks=(Check("of ChatOllama's", grown[OURS] / grown[OLLAMA], 1.1),),
    )


def rows() -> list[Row]:
    """Measure."""
    with replayed() as model:
        clients = Clients(model, ensure_server(ChatVllmMlx(model=model)._spec()))
        return [*asyncio.run(_speed(clients)), _memory(model)]
