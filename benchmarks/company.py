"""Six agents at once on a multimodal model: prompts in turns, against whole turns.

One request's prompt is read at a time, and all are answered together. Holding the turn to the end
of the answer would be right as well, and slower: that is what it is measured against.
"""

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from unittest import mock

from benchmarks.agents import Agent
from benchmarks.home import fast_cpu, real, tiny
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server.client.admission import Admission

AGENTS, TURNS, ROUNDS = 6, 3, 3
TOKENS = 48
_LENGTHS = (1, 4, 13)
_SHARE = 0.5
_PREFILL, _WHOLE = "turns of prompts", "whole turns"


@contextmanager
def _whole_turns() -> Iterator[None]:
    """Have each request keep its turn to its end."""
    with mock.patch.object(Admission, "begin", return_value=None):
        yield


def _run(model: ChatVllmMlx, numbers: Iterator[int]) -> tuple[float, float]:
    """Return the median seconds to the first token, and the seconds of all turns of all agents."""
    agents = [
        Agent(model, f"Journey {next(numbers)}", length)
        for length in itertools.islice(itertools.cycle(_LENGTHS), AGENTS)
    ]
    with ThreadPoolExecutor(AGENTS) as pool:
        began = time.perf_counter()
        firsts = list(pool.map(lambda agent: [agent.step() for _ in range(TURNS)], agents))
        whole = time.perf_counter() - began
    return median(itertools.chain.from_iterable(firsts)), whole


def _row(architecture: str, template: str) -> Row:
    model = ChatVllmMlx(
        model=tiny(architecture, template),
        temperature=0,
        max_tokens=TOKENS,
        server_env=fast_cpu(),
    )
    model.warm_up()
    numbers = itertools.count(100)
    found: dict[str, list[tuple[float, float]]] = {_PREFILL: [], _WHOLE: []}
    for number in range(ROUNDS):
        for name in sorted(found, reverse=number % 2 == 0):
            if name == _WHOLE:
                with _whole_turns():
                    found[name].append(_run(model, numbers))
            else:
                found[name].append(_run(model, numbers))
    model.unload(force=True)
    pairs = list(zip(found[_PREFILL], found[_WHOLE], strict=True))
    return Row(
        section="company",
        what=f"{AGENTS} agents at once, {TURNS} turns each, tiny {architecture}",
        unit="s to the first token",
        figures={name: median(first for first, _ in times) for name, times in found.items()},
        checks=(
            Check("of whole turns, first token", median(a[0] / b[0] for a, b in pairs), _SHARE),
            Check("of whole turns, all in all", median(a[1] / b[1] for a, b in pairs), 1.0),
        ),
    )


def rows() -> list[Row]:
    """Measure."""
    with real():
        return [_row("qwen3_5", "qwen3.6"), _row("gemma4", "plain")]
