"""The four ways to call a model, and a tool that it may call."""

import asyncio
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from langchain_car_vllm import ChatVllmMlx


def streamed(model: ChatVllmMlx, text: str, **given: Any) -> AIMessage:
    whole: AIMessageChunk | None = None
    for chunk in model.stream(text, **given):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


async def astreamed(model: ChatVllmMlx, text: str, **given: Any) -> AIMessage:
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(text, **given):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


WAYS: dict[str, Callable[..., AIMessage]] = {
    "invoke": lambda model, text, **given: model.invoke(text, **given),
    "ainvoke": lambda model, text, **given: asyncio.run(model.ainvoke(text, **given)),
    "stream": streamed,
    "astream": lambda model, text, **given: asyncio.run(astreamed(model, text, **given)),
}


def tool(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
            },
        },
    }
