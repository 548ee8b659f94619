"""What a call held is free at its end: nothing of it waits for Python's collector."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from fakes.reply import Reply
from langchain_core.messages import HumanMessage

from langchain_car_vllm import ChatVllmMlx

PROMPT = "a prompt that is megabytes long"


CITY = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}}


def find_weather(city: str) -> str:
    """Find the weather of a city."""
    return city


async def _drain(model: ChatVllmMlx) -> None:
    async for _ in model.astream(PROMPT):
        pass


CALLED = Reply(calls=[("find_weather", {"city": "Rome"})])
FORCED = Reply(text='{"name": "find_weather", "arguments": {"city": "Rome"}}')
WRITTEN = Reply(text='{"name": "Rome"}')
CASES: dict[str, tuple[Reply, Callable[[ChatVllmMlx], Any]]] = {
    "invoke": (Reply(text="yes"), lambda m: m.invoke(PROMPT)),
    "stream": (Reply(text="one two"), lambda m: list(m.stream(PROMPT))),
    "ainvoke": (Reply(text="yes"), lambda m: m.ainvoke(PROMPT)),
    "astream": (Reply(text="one two"), _drain),
    "left stream": (Reply(text="one two three"), lambda m: next(m.stream(PROMPT))),
    "tool": (CALLED, lambda m: m.bind_tools([find_weather]).invoke(PROMPT)),
    "tool stream": (CALLED, lambda m: list(m.bind_tools([find_weather]).stream(PROMPT))),
    "forced tool": (
        FORCED,
        lambda m: m.bind_tools([find_weather], tool_choice="find_weather").invoke(PROMPT),
    ),
    "structured": (WRITTEN, lambda m: m.with_structured_output(CITY).invoke(PROMPT)),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_call_waits_for_the_collector(serve, name: str):
    """The second answer of each kind leaves no circle with the prompt or a part of ours."""
    reply, call = CASES[name]
    model, _ = serve(reply, max_retries=0)
    with asyncio.Runner() as runner:

        def use() -> None:
            found = call(model)
            if asyncio.iscoroutine(found):
                runner.run(found)

        use()
        left = _garbage_of(use)
    assert not left


def _garbage_of(use: Callable[[], None]) -> list[str]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        use()
        gc.collect()
        return [found for found in map(_tell, gc.garbage) if found]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _tell(found: Any) -> str | None:
    """Return what is kept, None for what holds nothing of a call."""
    kind = type(found)
    if kind.__module__.startswith(("langchain_car_vllm", "httpcore2", "httpx2")):
        return f"{kind.__module__}.{kind.__name__}"
    if isinstance(found, HumanMessage) or PROMPT in (found.values() if kind is dict else ()):
        return f"the prompt, in a {kind.__name__}"
    return None
