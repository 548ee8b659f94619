"""Whoever leaves a call ends its generation."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from fakes.reply import Reply
from unit.wire.calling import astreamed, tool


def test_leaving_a_stream_ends_the_generation(serve):
    """Closing the stream closes the connection, which is the server's only cancel."""
    gate = threading.Event()
    model, dialect = serve(Reply(text="w " * 400, pause=0.005))
    stream = model.stream("hi")
    next(stream)
    stream.close()
    _wait_until(lambda: dialect.closed == 1)
    gate.set()


@pytest.mark.parametrize("way", ["ainvoke", "astream", "astream_events", "forced"])
async def test_cancelling_a_task_ends_the_generation(serve, way):
    """However it was called, a cancelled task closes its connection."""
    model, dialect = serve(Reply(text="w " * 400, pause=0.005), dialect={"engine": "simple"})

    async def events() -> None:
        async for _ in model.astream_events("hi", version="v2"):
            pass

    forced = model.bind_tools([tool("add"), tool("sub")], tool_choice="any")
    ways = {
        "ainvoke": lambda: model.ainvoke("hi"),
        "astream": lambda: astreamed(model, "hi"),
        "astream_events": events,
        "forced": lambda: forced.ainvoke("hi"),
    }
    task = asyncio.create_task(ways[way]())
    await asyncio.to_thread(_wait_until, lambda: bool(dialect.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(_wait_until, lambda: dialect.closed == 1)


def _wait_until(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(500):
        if condition():
            return
        event.wait(0.01)
    pytest.fail("it did not happen within five seconds")
