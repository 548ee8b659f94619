"""What ends with an event loop that is closed before it comes back to what waits on it."""

import asyncio
import gc
from collections.abc import Callable

import pytest

from langchain_car_vllm.support.closed_loops import ended_with_loop


async def wait_forever(end: Callable[[], object]) -> None:
    with ended_with_loop(end):
        await asyncio.Event().wait()


@pytest.mark.filterwarnings("ignore:unclosed event loop")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("is_closed", [True, False])
def test_it_ends_with_the_loop(is_closed):
    """With its task kept, where it is closed; else with the two, once nobody has them."""
    ended = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(wait_forever(lambda: ended.append(True)))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not ended
    if is_closed:
        loop.close()
    else:
        del loop, task
        gc.collect()
    assert ended == [True]


def test_who_has_left_is_not_ended():
    """However the block was left, and no timer stays behind."""
    ended = []

    async def leave() -> int:
        with ended_with_loop(lambda: ended.append(True)):
            await asyncio.sleep(0)
        waiting = asyncio.create_task(wait_forever(lambda: ended.append(True)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        timers = asyncio.get_running_loop()._scheduled
        return sum(not timer.cancelled() for timer in timers)

    assert asyncio.run(leave()) == 0
    assert not ended
