"""Whether the default engine is the better one, alone and in company."""

import itertools
from functools import partial
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, Field

from benchmarks.agents import book, look_up
from benchmarks.home import fast_cpu, real, smollm2
from benchmarks.rounds import Measured, interleaved, ratio
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx

COMPANY = 8
TOKENS = 8
ALONE_ROUNDS = 5
_ENGINES: tuple[Literal["simple", "batched"], ...] = ("simple", "batched")
_DEFAULT = "batched (default)"
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


def _measured() -> dict[tuple[str, int], Measured]:
    """Return the seconds of both engines by kind and company; they take turns."""
    models = {
        engine: ChatVllmMlx(
            model=smollm2(),
            engine=engine,
            temperature=0,
            max_tokens=TOKENS,
            server_env=fast_cpu(),
        )
        for engine in _ENGINES
    }
    kinds = {engine: _kinds(model) for engine, model in models.items()}
    found = {}
    for kind in kinds["simple"]:
        tokens = {"max_tokens": 60} if kind == "constrained" else {}
        numbers = itertools.count(step=COMPANY)
        for many, rounds in ((1, ALONE_ROUNDS), (COMPANY, 1)):

            def ask(engine: str, many: int = many, kind: str = kind, **given: Any) -> object:
                first = next(numbers)  # noqa: B023 - used within its turn
                questions = [_ASK.format(number=first + n) for n in range(many)]
                return kinds[engine][kind].batch(questions, **given)

            calls = {engine: partial(ask, engine, **tokens) for engine in _ENGINES}
            found[kind, many] = interleaved(calls, rounds)
    return found


def rows() -> list[Row]:
    """Measure."""
    with real():
        measured = _measured()
    return [
        Row(
            section="defaults",
            what=f"{kind}, {'one user' if many == 1 else f'{many} users at once'}",
            unit="s until all are answered",
            figures={"simple": median(times["simple"]), _DEFAULT: median(times["batched"])},
            checks=(
                Check(
                    "of the simple engine's",
                    ratio(times, "batched", "simple"),
                    1.25 if many == 1 else 1.0,
                ),
            ),
        )
        for (kind, many), times in measured.items()
    ]
