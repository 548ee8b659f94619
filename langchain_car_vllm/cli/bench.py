"""`bench`: what a model does on this machine, measured in about a minute."""

import random
import string
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from langchain_car_vllm.cli.options import AsJson, ModelArgument
from langchain_car_vllm.cli.output import print_json, print_table, say
from langchain_car_vllm.environment import CAR_VLLM_MLX_WIRED
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.progress.display import Display

if TYPE_CHECKING:
    from langchain_car_vllm import ChatVllmMlx

_PROMPT_WORDS = 700
_ANSWER_TOKENS = 96
_TURNS = 10
_TURN_WORDS = 40
_LIMIT = 120.0
"""Seconds that one answer may take before a row says that it took too long."""


Measured = tuple[float | bool | None, str]
"""A figure, None where it could not be had, and what there is to say of it."""


class Row(NamedTuple):
    """One thing that was measured.

    Attributes:
        name: What.
        value: The figure, None where it could not be had.
        unit: Of the figure; empty where `value` is yes or no.
        note: What there is to say of it.
    """

    name: str
    value: float | bool | None
    unit: str = ""
    note: str = ""


def bench(
    model: ModelArgument,
    *,
    wired: Annotated[
        bool,
        typer.Option("--wired", help="Compare wired memory on and off, each in its own server"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on this machine, in about a minute.

    Load, prompt and answer rates, ten growing turns of a conversation, a tool call and a
    structured answer, with the default settings.
    """
    variants: dict[str, dict[str, Any]] = {"": {}}
    if wired:
        variants = {
            name: {"server_env": {CAR_VLLM_MLX_WIRED.name: value}, "keep_alive": 0}
            for name, value in (("wired off", "0"), ("wired on", "1"))
        }
    results = {name: _measure(model, settings) for name, settings in variants.items()}
    if as_json:
        rows = {name: [row._asdict() for row in found] for name, found in results.items()}
        print_json(rows if wired else rows[""])
        return
    for name, found in results.items():
        if name:
            print(name)
        print_table(("MEASURED", "VALUE", "NOTE"), [_cells(row) for row in found])


def _measure(model: str, settings: dict[str, Any]) -> list[Row]:
    from langchain_car_vllm import ChatVllmMlx  # noqa: PLC0415 - LangChain, for this command alone

    with closing(Display(model)) as display:
        llm = ChatVllmMlx(
            model=model, temperature=0, timeout=_LIMIT, on_progress=display, **settings
        )
        rows = [_load(llm)]
        for name, unit, what, measure in _MEASURES:
            say(f"measuring: {what}")
            try:
                value, note = measure(llm)
            except CarVllmError as error:
                value, note = None, error.message
            rows.append(Row(name, value, unit, note))
    return rows


def _load(llm: "ChatVllmMlx") -> Row:
    began = time.monotonic()
    llm.warm_up()
    taken = time.monotonic() - began
    return Row("start", taken, "s", "from scratch, or from what was already loaded")


def _prefill(llm: "ChatVllmMlx") -> Measured:
    asked = llm.bind(max_tokens=1)
    began = time.monotonic()
    answer = asked.invoke(f"{_words(_PROMPT_WORDS)}\n\nAnswer with one word.")
    taken = time.monotonic() - began
    tokens = answer.usage_metadata["input_tokens"] if answer.usage_metadata else 0
    return tokens / taken, f"{tokens} new tokens in {taken:.1f} s"


def _decode(llm: "ChatVllmMlx") -> Measured:
    began = first = last = time.monotonic()
    tokens, total = 0, None
    for chunk in llm.bind(max_tokens=_ANSWER_TOKENS).stream("Tell a long story about the sea."):
        last = time.monotonic()
        total = total or chunk
        if chunk.usage_metadata:
            tokens = chunk.usage_metadata["output_tokens"]
        elif first == began:
            first = last
    rate = (tokens - 1) / (last - first) if tokens > 1 and last > first else None
    return rate, f"first after {first - began:.2f} s, {tokens} tokens"


def _turns(llm: "ChatVllmMlx") -> Measured:
    from langchain_core.messages import AIMessage, HumanMessage  # noqa: PLC0415

    history: list[Any] = []
    times = []
    for _ in range(_TURNS):
        history.append(HumanMessage(f"{_words(_TURN_WORDS)} Answer with one word."))
        began = time.monotonic()
        answer = llm.bind(max_tokens=4).invoke(history)
        times.append(time.monotonic() - began)
        history.append(AIMessage(answer.content))
    growth = times[-1] / times[1]
    return growth, f"{times[1]:.2f} s and {times[-1]:.2f} s; near 1 is flat"


def _tool_call(llm: "ChatVllmMlx") -> Measured:
    def weather(city: str) -> str:
        """Tell the weather in a city."""
        return city

    began = time.monotonic()
    answer = llm.bind_tools([weather]).invoke("What is the weather in Paris? Use the tool.")
    taken = time.monotonic() - began
    called = any(call["name"] == "weather" for call in answer.tool_calls)
    return called, f"unforced, {taken:.1f} s"


def _measure_structured(llm: "ChatVllmMlx") -> Measured:
    schema = {
        "title": "City",
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "country": {"type": "string", "maxLength": 20},
        },
        "required": ["name", "country"],
    }
    began = time.monotonic()
    answer = llm.with_structured_output(schema).invoke("Name a city and its country.")
    taken = time.monotonic() - began
    fits = isinstance(answer, dict) and answer.keys() == schema["properties"].keys()  # type: ignore[attr-defined]
    return fits, f"{taken:.1f} s"


_MEASURES: tuple[tuple[str, str, str, Callable[["ChatVllmMlx"], Measured]], ...] = (
    ("prompt", "tokens/s", "reading a prompt", _prefill),
    ("answer", "tokens/s", "writing an answer", _decode),
    ("turn 10 against turn 2", "times", "ten growing turns of a conversation", _turns),
    ("calls a tool", "", "a tool call", _tool_call),
    ("structured answer", "", "a structured answer", _measure_structured),
)
"""Name and unit of a row, what is said while it is measured, and what measures it."""


def _words(count: int) -> str:
    """Return words that no cache has seen."""
    random_words = random.Random()  # noqa: S311 - no secret
    letters = string.ascii_lowercase
    return " ".join("".join(random_words.choices(letters, k=4)) for _ in range(count))


def _cells(row: Row) -> tuple[str, str, str]:
    if isinstance(row.value, bool):
        value = "yes" if row.value else "no"
    else:
        value = "-" if row.value is None else f"{row.value:.2f} {row.unit}"
    return row.name, value, row.note
