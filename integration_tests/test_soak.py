"""The real server over two thousand requests: it answers all, and its memory stays as it is."""

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import directory_of, stop_server
from langchain_car_vllm.server.state import read_state

Chat = Callable[..., ChatVllmMlx]
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "2000"))
AT_ONCE = 8
WARM_UP = 0.25
"""Share of the requests after which the server has all the buffers and prefixes that it keeps."""
SLACK = 1.05


class Memory:
    """What a process holds, looked at from time to time.

    Args:
        process: The process.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.looks: list[tuple[int, int]] = []

    def look(self, answered: int) -> None:
        """Note what it holds after so many answers."""
        self.looks.append((answered, self._process.memory_info().rss))

    def held(self, first: float, last: float, total: int) -> int:
        """Return the most between two shares of all answers.

        What the allocator gives back goes up and down by a tenth; a leak raises the highest mark.
        """
        return max(rss for n, rss in self.looks if first * total <= n <= last * total)


def test_two_thousand_requests_leave_memory_flat(chat: Chat):
    """Ten minutes at least, in four ways, with prefixes that come and go; nothing is lost."""
    # A small cache is full soon; a large one grows for as long as it may, which is no leak.
    llm = chat(engine="batched", max_tokens=1, server_args=["--cache-memory-mb", "64"])
    llm.invoke("Hello")
    directory = directory_of(llm._spec(engine="batched"))
    state = read_state(directory.state)
    assert state is not None
    assert state.server is not None
    process = state.server.find()
    assert process is not None
    memory, count, lock = Memory(process), itertools.count(), threading.Lock()
    over = time.monotonic() + SECONDS

    def work() -> int:
        answered = 0
        while (number := next(count)) < REQUESTS or time.monotonic() < over:
            prompt = f"{number % 97}: say one word."
            if number % 4 == 0:
                assert "".join(chunk.text for chunk in llm.stream(prompt)) is not None
            elif number % 4 == 1:
                next(iter(llm.stream(prompt)))
            else:
                llm.invoke(prompt)
            answered += 1
            with lock:
                memory.look(number)
        return answered

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answered = sum(f.result() for f in [pool.submit(work) for _ in range(AT_ONCE)])
        before = memory.held(WARM_UP, 0.5, answered)
        after = memory.held(0.75, 1.0, answered)
        print(f"{answered} requests, {before / 1e6:.0f} MB and then {after / 1e6:.0f} MB")
        assert answered >= REQUESTS
        assert process.is_running()
        assert after <= before * SLACK, (before, after)
    finally:
        stop_server(directory)
