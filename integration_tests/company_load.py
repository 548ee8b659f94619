"""A seeded load on one model: many kinds of requests, each with the answer that it got.

    python company_load.py MODEL SEED WORKER [--without-turns]

prints a line of JSON for each request that ended. `--kill` sends one long prompt instead and kills
this process while the server reads it. The same requests can be asked once more, one by one.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import struct
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    messages_from_dict,
    messages_to_dict,
)
from langchain_core.runnables import Runnable
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.server import directory_of
from langchain_car_vllm.server.client import admission

AT_ONCE = 3
FAILED = "failed: "
_PREFILL_SECONDS, _DECODE_CHUNKS = 0.3, 2
_WORDS = [
    "the",
    "city",
    "river",
    "house",
    "light",
    "sea",
    "road",
    "people",
    "train",
    "time",
    "night",
    "first",
    "green",
    "small",
    "great",
    "water",
    "music",
    "paper",
    "table",
    "window",
    "morning",
    "winter",
    "story",
    "number",
    "question",
    "answer",
    "market",
    "bridge",
    "garden",
]
_MIX = {
    "short": 12,
    "medium": 6,
    "long": 3,
    "conversation": 2,
    "thought": 4,
    "tools": 4,
    "image": 3,
    "two images": 2,
    "swapped images": 2,
    "schema": 3,
    "stop": 4,
    "cancel in prefill": 2,
    "cancel in decode": 2,
}
_TURNS = 4
_LONG = 2500, 3800
"""Words of a prompt that is read in many chunks, so that short ones arrive meanwhile."""


class Reading(BaseModel):
    """What a meter shows."""

    digit: int = Field(ge=0, le=9)
    is_on: bool
    code: str = Field(pattern="^[a-z]{1,6}$")


def look_up(city: str) -> str:
    """Look up what there is to see in a city."""
    return city


class Request(NamedTuple):
    """One thing that a user asks, of one turn or several.

    Attributes:
        name: Tells it from all others.
        kind: Of `_MIX`.
        turns: What the user says, turn by turn.
        tokens: Of each answer, at most.
    """

    name: str
    kind: str
    turns: tuple[Any, ...]
    tokens: int


class Exchange(NamedTuple):
    """One request as it was sent, and what came back; None where it was cancelled."""

    name: str
    kind: str
    tokens: int
    asked: list[dict[str, Any]]
    answer: str | None


def picture(red: int, blue: int) -> dict[str, str]:
    """Return a block with a picture of one colour."""
    rows = (b"\0" + bytes((red, 0, blue)) * 64) * 64

    def part(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows))
    encoded = b64encode(data + part(b"IEND", b"")).decode()
    return {"type": "image", "base64": encoded, "mime_type": "image/png"}


def requests_of(seed: int, worker: int) -> list[Request]:
    """Return what one process asks, in its order."""
    source = random.Random(f"{seed}-{worker}")
    kinds = [kind for kind, count in _MIX.items() for _ in range(count)]
    source.shuffle(kinds)
    return [_request(source, f"{worker}.{n}", kind) for n, kind in enumerate(kinds)]


def _request(source: random.Random, name: str, kind: str) -> Request:
    def text(least: int, most: int) -> str:
        return " ".join(source.choices(_WORDS, k=source.randint(least, most)))

    tokens = source.randint(3, 16)
    lengths = {
        "short": (1, 40),
        "medium": (100, 600),
        "long": _LONG,
        "schema": (5, 700),
        "cancel in prefill": _LONG,
    }
    least, most = lengths.get(kind, (5, 250))
    if kind == "conversation":
        return Request(name, kind, tuple(text(20, 320) for _ in range(_TURNS)), tokens)
    if "image" in kind:
        # Few colours, so that pictures come again.
        one, two = (picture(source.choice((0, 255)), 80 * n) for n in (1, 2))
        pictures = {"image": [one], "two images": [one, two], "swapped images": [two, one]}[kind]
        words = [{"type": "text", "text": text(1, 30)}]
        return Request(name, kind, ([*words, *pictures],), tokens)
    tokens = {"schema": 80, "cancel in decode": 60, "stop": 24}.get(kind, tokens)
    return Request(name, kind, (text(least, most),), tokens)


def model_for(folder: str, environment: dict[str, str]) -> ChatVllmMlx:
    """Return the model as a user has it who sets nothing but the temperature."""
    return ChatVllmMlx(model=folder, temperature=0, server_env=environment)


async def exchanges(model: ChatVllmMlx, request: Request) -> AsyncIterator[Exchange]:
    """Ask, turn by turn; the model's own answers become the history."""
    history: list[BaseMessage] = []
    if request.kind in ("conversation", "tools"):
        history.append(SystemMessage("You plan journeys, step by step."))
    for number, said in enumerate(request.turns):
        history.append(HumanMessage(said))
        asked = messages_to_dict(history)
        answer = await _outcome(model, request.kind, history, request.tokens)
        shown = None if answer is None else _shown(answer)
        yield Exchange(f"{request.name}.{number}", request.kind, request.tokens, asked, shown)
        if isinstance(answer, AIMessage):
            history.append(answer)


async def asked_again(model: ChatVllmMlx, exchange: Exchange) -> str:
    """Return the answer to the very request of an exchange."""
    history = messages_from_dict(exchange.asked)
    answer = await _outcome(model, exchange.kind, history, exchange.tokens)
    assert answer is not None
    return _shown(answer)


async def _outcome(
    model: ChatVllmMlx, kind: str, history: Sequence[BaseMessage], tokens: int
) -> Any:
    """Return the answer, or the text of an error: it must be the same alone, too."""
    try:
        return await _answer(model, kind, history, tokens)
    except CarVllmError as error:
        return f"{FAILED}{type(error).__name__}: {error}"


async def _answer(
    model: ChatVllmMlx, kind: str, history: Sequence[BaseMessage], tokens: int
) -> Any:
    if kind == "schema":
        return await model.with_structured_output(Reading).ainvoke(history, max_tokens=tokens)
    bound: Runnable[Any, Any] = model.bind_tools([look_up]) if kind == "tools" else model
    given: dict[str, Any] = {"max_tokens": tokens}
    if kind == "stop":
        given["stop"] = ["e", "a"]
    if kind == "thought":
        # By the server's own name: Gemma's thoughts have no end that it knows.
        given |= {"reasoning": True, "thinking_token_budget": max(1, tokens // 2)}
    if kind == "cancel in prefill":
        task = asyncio.create_task(bound.ainvoke(history, **given))
        await asyncio.wait([task], timeout=_PREFILL_SECONDS)
        task.cancel()
        await asyncio.wait([task])
        return None
    whole: Any = None
    number = 0
    async for chunk in bound.astream(history, **given):
        whole = chunk if whole is None else whole + chunk
        number += 1
        if kind == "cancel in decode" and number == _DECODE_CHUNKS:
            return None
    if kind == "cancel in decode":
        return None
    return AIMessage(
        whole.content, additional_kwargs=whole.additional_kwargs, tool_calls=whole.tool_calls
    )


def _shown(answer: Any) -> str:
    """Return all of an answer that must be the same once more."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, BaseModel) and not isinstance(answer, BaseMessage):
        return answer.model_dump_json()
    calls = [(call["name"], call["args"]) for call in answer.tool_calls]
    return json.dumps([answer.text, answer.additional_kwargs.get("reasoning_content"), calls])


async def _load(model: ChatVllmMlx, requests: Sequence[Request]) -> None:
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            async for exchange in exchanges(model, request):
                print(json.dumps(exchange), flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


def _die_in_prefill(model: ChatVllmMlx) -> None:
    """Send a long prompt and die by SIGKILL once it is being read."""
    folder = directory_of(model._spec(engine=model.engine)).turns
    sent = f"*-{os.getpid()}-*.answering"

    def watch() -> None:
        while not [*folder.glob(f"*-{os.getpid()}-*.prefill"), *folder.glob(sent)]:
            time.sleep(0.005)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    model.invoke(" ".join(_WORDS * 60), max_tokens=4)


def main() -> None:
    """Run one process's part of the load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("seed", type=int)
    parser.add_argument("worker", type=int)
    parser.add_argument("--environment", type=json.loads, default={})
    parser.add_argument("--without-turns", action="store_true")
    parser.add_argument("--kill", action="store_true")
    given = parser.parse_args()
    if given.without_turns:
        admission.rules_of = lambda _: admission.Rules()
    model = model_for(given.model, given.environment)
    if given.kill:
        _die_in_prefill(model)
        sys.exit("was not killed")
    asyncio.run(_load(model, requests_of(given.seed, given.worker)))


if __name__ == "__main__":
    main()
