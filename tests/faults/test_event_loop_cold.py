"""A cold start never blocks the event loop, whichever way it is begun."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from faults.support import Fake

from langchain_car_vllm import ChatVllmMlx, connection
from langchain_car_vllm.runtime.runtime import warn_about_what_is_passed_over


async def streamed(model: ChatVllmMlx) -> str:
    return "".join([chunk.text async for chunk in model.astream("hi")])


async def answered(model: ChatVllmMlx) -> str:
    return (await model.ainvoke("hi")).text


async def warmed(model: ChatVllmMlx) -> str:
    await model.awarm_up()
    return await answered(model)


async def at_once(model: ChatVllmMlx) -> str:
    return (await model.abatch(["hi", "ho"]))[1].text


WITH_ROOM = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 512,
}
"""How much a conversation takes is known, so that requests draw tickets."""
IN_TURNS = {**WITH_ROOM, "vision_config": {}}
"""It takes pictures, so that prompts are read one after the other."""


@pytest.mark.parametrize("config", [None, WITH_ROOM, IN_TURNS], ids=["open", "room", "turns"])
@pytest.mark.parametrize("way", [streamed, answered, warmed, at_once])
def test_a_cold_start_never_blocks_the_event_loop(
    fake: Fake, way: Callable[[ChatVllmMlx], Awaitable[str]], config: dict[str, Any] | None
):
    """From the first look for an installation to the last token, and once more when it runs."""
    if config is not None:
        (fake.model / "config.json").write_text(json.dumps(config))
    connection._warned.clear()
    warn_about_what_is_passed_over.cache_clear()
    model = ChatVllmMlx(model=str(fake.model), max_tokens=3)

    async def twice() -> list[str]:
        with blockbuster_ctx("langchain_car_vllm"):
            return [await way(model), await way(model)]

    assert [text.strip() for text in asyncio.run(twice())] == ["tok0 tok1 tok2"] * 2
