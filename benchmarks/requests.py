"""What large requests cost: many tools, a long history, a large schema, a crowded executor."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from benchmarks.clients import OPENAI, OURS, Clients
from benchmarks.home import replayed
from benchmarks.rounds import Measured, ainterleaved, interleaved, medians, ratio
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server
from langchain_car_vllm.wire.exchange.strategy import exchange_for
from langchain_car_vllm.wire.output_parser import response_format, response_format_of

ROUNDS = 11
CALLS = 10
TOOLS, HISTORY = 20, 200
_MILLI = 1e3


def _tool(number: int) -> dict[str, Any]:
    """Return a tool with 500 bytes of schema."""
    fields = {f"field_{n}": {"type": "string", "description": "What it is."} for n in range(7)}
    parameters = {"type": "object", "properties": fields, "required": ["field_0"]}
    function = {"name": f"tool_{number}", "description": "Does it.", "parameters": parameters}
    return {"type": "function", "function": function}


def _history(messages: int) -> list[BaseMessage]:
    """Return an agent's conversation."""
    found: list[BaseMessage] = [SystemMessage("You look things up. " * 10)]
    for turn in range(messages // 4):
        call = {"name": "look_up", "args": {"what": f"thing {turn}"}, "id": f"call-{turn}"}
        found += [
            HumanMessage(f"What is thing {turn}? " * 5),
            AIMessage("", tool_calls=[call]),
            ToolMessage("It is a thing. " * 20, tool_call_id=f"call-{turn}"),
            AIMessage(f"Thing {turn} is a thing. " * 10),
        ]
    return found


def _many(call: Callable[[], object]) -> Callable[[], object]:
    return lambda: [call() for _ in range(CALLS)]


def _row(what: str, times: Measured, bar: float = 0.7) -> Row:
    figures = medians(times, _MILLI / CALLS)
    return Row(
        "requests",
        what,
        "ms",
        figures,
        (Check("of ChatOpenAI's", ratio(times, OURS, OPENAI), bar),),
    )


def _tools_row(clients: Clients) -> Row:
    tools = [_tool(number) for number in range(TOOLS)]
    bound = {name: clients.models[name].bind_tools(tools) for name in (OURS, OPENAI)}
    calls = {name: _many(lambda m=model: m.invoke("hi")) for name, model in bound.items()}
    return _row(f"`invoke` with {TOOLS} tools of 500 bytes", interleaved(calls, ROUNDS))


def _history_rows(clients: Clients) -> list[Row]:
    history = [*_history(HISTORY), HumanMessage("And now?")]
    models = {name: clients.models[name] for name in (OURS, OPENAI)}
    calls = {name: _many(lambda m=model: m.invoke(history)) for name, model in models.items()}
    times = interleaved(calls, ROUNDS)
    return [
        _row(f"`invoke` with a history of {HISTORY} messages", times),
        _growth_row(clients),
    ]


def _growth_row(clients: Clients) -> Row:
    """Return what a step costs whose history grew by two, against one whose history is all new."""
    model, numbers = clients.models[OURS], iter(range(10**9))
    grown = _history(HISTORY)

    def grow() -> None:
        number = next(numbers)
        grown.extend([HumanMessage(f"Question {number}"), AIMessage(f"Answer {number}")])
        model.invoke(grown[-HISTORY:])

    def begin() -> None:
        number = next(numbers)
        model.invoke([HumanMessage(f"{number} {m.text}") for m in _history(HISTORY)])

    times = interleaved({"grown by two": _many(grow), "all new": _many(begin)}, ROUNDS)
    kept = ratio(times, "grown by two", "all new")
    return Row(
        "requests",
        f"`invoke` with a history of {HISTORY} messages that grew by two",
        "ms",
        medians(times, _MILLI / CALLS),
        (Check("of one that is all new", kept, 0.7),),
    )


def _schema(size: int = 5000) -> dict[str, Any]:
    """Return a JSON schema of about so many bytes."""
    field = {"type": "string", "description": "What it is, in a few words.", "maxLength": 100}
    fields = {f"field_{number}": field for number in range(size // 100)}
    return {"title": "Record", "type": "object", "properties": fields, "required": [*fields]}


def _schema_row(model: str) -> Row:
    """Return what a schema adds to the preparation of a call, once it is bound."""
    endpoint = ensure_server(ChatVllmMlx(model=model)._spec())
    sent = [{"role": "user", "content": "hi"}]

    def prepare(form: Any) -> Callable[[], object]:
        return lambda: [
            exchange_for(
                endpoint, sent, None, {"response_format": response_format_of(form)}, streamed=False
            )
            for _ in range(1000)
        ]

    calls = {"with it": prepare(response_format(_schema())), "without": prepare(None)}
    figures = medians(interleaved(calls, 5))  # seconds of 1,000 calls are milliseconds of one
    return Row(
        "requests",
        "preparing a call with a schema of 5 KB",
        "ms",
        figures,
        (Check("more than without", figures["with it"] - figures["without"], 0.2, "ms"),),
    )


async def _executor_row(clients: Clients) -> Row:
    """Return what `ainvoke` takes while every thread of the loop's executor waits."""
    model = clients.models[OURS]
    over = threading.Event()
    loop = asyncio.get_running_loop()

    async def call() -> None:
        for _ in range(CALLS):
            await model.ainvoke("hi")

    async def crowded() -> None:
        waiting = [loop.run_in_executor(None, over.wait) for _ in range(64)]
        try:
            await call()
        finally:
            over.set()
            await asyncio.gather(*waiting)
            over.clear()

    times = await ainterleaved({"full": crowded, "free": call}, ROUNDS)
    return Row(
        "requests",
        "`ainvoke` while the default executor is full",
        "ms",
        medians(times, _MILLI / CALLS),
        (Check("of what it takes otherwise", ratio(times, "full", "free"), 1.5),),
    )


def rows() -> list[Row]:
    """Measure."""
    with replayed() as model:
        clients = Clients(model, ensure_server(ChatVllmMlx(model=model)._spec()))
        return [
            _tools_row(clients),
            *_history_rows(clients),
            _schema_row(model),
            asyncio.run(_executor_row(clients)),
        ]
