"""Whether the default engine is the better one, alone and in company."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, Field

from benchmarks.agents import book, look_up
from benchmarks.home import fast_cpu, real, smollm2
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx

COMPANY = 8
TOKENS = 8
ALONE_ROUNDS = 2
_ENGINES: tuple[Literal["simple", "batched"], ...] = ("simple", "batched")
_ASK = "Question {number}: which city should we see first, and why?"


class Choice(BaseModel):
    """A city."""

    rank: int = Field(ge=0, le=9)
    liked: bool


def _kinds(model: ChatVllmMlx) -> dict[str, Any]:
    """Return the kinds of requests."""
    return {
        "plain": model,
        "constrained": model.with_structured_output(Choice),
        "with tools": model.bind_tools([look_up, book]),
    }


def _seconds(ask: Callable[[list[str]], object], many: int, first: int) -> float:
    """Return how long it takes until as many users have their answers."""
    questions = [_ASK.format(number=first + n) for n in range(many)]
    began = time.perf_counter()
    ask(questions)
    return time.perf_counter() - began


def _measured(engine: Literal["simple", "batched"]) -> dict[tuple[str, int], float]:
    model = ChatVllmMlx(
        model=smollm2(),
        engine=engine,
        temperature=0,
        max_tokens=TOKENS,
        server_env=fast_cpu(),
    )
    model.warm_up()
    found = {}
    for kind, asked in _kinds(model).items():
        tokens = {"max_tokens": 60} if kind == "constrained" else {}

        def ask(questions: list[str], asked: Any = asked, tokens: Any = tokens) -> object:
            return asked.batch(questions, **tokens)

        ask([_ASK.format(number=0)])
        alone = [_seconds(ask, 1, 10 + turn) for turn in range(ALONE_ROUNDS)]
        found[kind, 1] = median(alone)
        found[kind, COMPANY] = _seconds(ask, COMPANY, 100)
    model.unload(force=True)
    return found


def rows() -> list[Row]:
    """Measure."""
    with real():
        simple, batched = (_measured(engine) for engine in _ENGINES)
    return [
        Row(
            section="defaults",
            what=f"{kind}, {'one user' if many == 1 else f'{many} users at once'}",
            unit="s until all are answered",
            figures={"simple": simple[kind, many], "batched (default)": batched[kind, many]},
            checks=(
                Check(
                    "of the simple engine's",
                    batched[kind, many] / simple[kind, many],
                    1.25 if many == 1 else 1.0,
                ),
            ),
        )
        for kind, many in simple
    ]
