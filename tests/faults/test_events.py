"""The waits of a call, as custom events of its run in LangChain."""

import asyncio
from typing import Any

import pytest
from faults.support import PATIENCE, Fake
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.progress.run_events import EVENT


class Heard(list[Progress]):
    """Hears of a wait; the model is loading until that is told."""

    def __init__(self, fake: Fake) -> None:
        super().__init__()
        self._fake = fake
        fake.switch(load_gate=fake.gate("load"))

    def __call__(self, progress: Progress) -> None:
        self.append(progress)
        if progress.stage == "load":
            self._fake.open_gate("load")


@pytest.fixture
def model(fake: Fake) -> ChatVllmMlx:
    """A chat model on the fake installation, whose server is not running yet."""
    return ChatVllmMlx(model=str(fake.model), max_tokens=3, on_progress=Heard(fake))


class Listener(BaseCallbackHandler):
    """Keeps the custom events, and the run that each belongs to."""

    def __init__(self) -> None:
        self.runs: set[Any] = set()
        self.stages: list[str] = []
        self.events: set[Any] = set()

    def on_chat_model_start(self, serialized, messages, *, run_id, **kwargs):
        self.runs.add(run_id)

    def on_custom_event(self, name, data, *, run_id, **kwargs):
        assert name == EVENT
        self.events.add(run_id)
        self.stages.append(data["stage"])


class AsyncListener(AsyncCallbackHandler):
    """Does the same on the event loop of the call."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.loops: set[Any] = set()

    async def on_custom_event(self, name, data, **kwargs):
        self.loops.add(asyncio.get_running_loop())
        self.stages.append(data["stage"])


def is_told(stages: list[str]) -> bool:
    return "load" in stages and stages[-1] == "ready"


def test_a_start_is_told_to_the_run_and_a_warm_call_tells_nothing(model: ChatVllmMlx):
    """The events belong to the run of the model, and come only where there is a wait."""
    listener = Listener()
    assert model.invoke("hi", config={"callbacks": [listener]}).text
    assert is_told(listener.stages)
    assert listener.events == listener.runs
    warm = Listener()
    assert model.invoke("hi", config={"callbacks": [warm]}).text
    assert warm.stages == []


def test_the_models_own_callbacks_and_on_progress_are_told_too(fake: Fake):
    """The one does not take the place of the other."""
    listener, heard = Listener(), Heard(fake)
    model = ChatVllmMlx(
        model=str(fake.model), max_tokens=3, callbacks=[listener], on_progress=heard
    )
    assert model.invoke("hi").text
    assert is_told(listener.stages)
    assert "load" in [progress.stage for progress in heard]


@pytest.mark.parametrize("way", ["ainvoke", "astream"])
def test_handlers_of_a_loop_are_told_on_it_before_the_call_ends(model: ChatVllmMlx, way: str):
    """Progress comes from threads; an asynchronous handler runs where it belongs."""
    listener = AsyncListener()
    config: Any = {"callbacks": [listener]}

    async def ask() -> set[Any]:
        async def around(question: str) -> None:  # LangChain gives a stream no run of its own
            assert [chunk async for chunk in model.astream(question)]

        if way == "ainvoke":
            await model.ainvoke("hi", config=config)
        else:
            await RunnableLambda(around).ainvoke("hi", config=config)
        assert is_told(listener.stages)
        return {asyncio.get_running_loop()}

    assert asyncio.run(ask()) == listener.loops


class Stuck(AsyncCallbackHandler):
    """Never comes back, as one that writes to somebody who has gone."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()

    async def on_custom_event(self, name, data, **kwargs):
        self.is_asked.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("way", ["ainvoke", "astream"])
async def test_a_cancelled_call_waits_for_no_handler(fake: Fake, way: str):
    """What it would still have told is left, or a time limit would not end it."""
    fake.switch(load_gate=fake.gate("load"))
    model = ChatVllmMlx(model=str(fake.model), on_progress=lambda _: None)
    listener = Stuck()
    config: Any = {"callbacks": [listener]}

    async def around(question: str) -> None:
        async for _ in model.astream(question):
            pass

    called: Any = model if way == "ainvoke" else RunnableLambda(around)
    call = asyncio.create_task(called.ainvoke("hi", config=config))
    await listener.is_asked.wait()
    call.cancel()
    await asyncio.wait([call], timeout=PATIENCE / 4)
    assert call.cancelled()


def graph_of(model: ChatVllmMlx, *, blocking: bool) -> Any:
    def answer(state):
        return {"messages": [model.invoke(state["messages"])]}

    async def aanswer(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer if blocking else aanswer)
    graph.add_edge(START, "model")
    graph.add_edge("model", END)
    return graph.compile()


QUESTION = {"messages": [("user", "hi")]}


@pytest.mark.parametrize("blocking", [True, False])
def test_a_graphs_custom_stream_shows_the_waits(model: ChatVllmMlx, blocking: bool):
    """`stream_mode="custom"` needs nothing of the user's node."""
    graph = graph_of(model, blocking=blocking)

    async def collect() -> list[Any]:
        return [part async for part in graph.astream(QUESTION, stream_mode="custom")]

    parts = (
        list(graph.stream(QUESTION, stream_mode="custom")) if blocking else asyncio.run(collect())
    )
    assert {part["type"] for part in parts} == {EVENT}
    assert is_told([part["stage"] for part in parts])
    assert parts[0]["model"] == model._name()


def test_astream_events_shows_the_waits(model: ChatVllmMlx):
    """As events of the node's run, since the model streams in it."""
    graph = graph_of(model, blocking=False)

    async def collect() -> list[Any]:
        return [event async for event in graph.astream_events(QUESTION, version="v2")]

    events = asyncio.run(collect())
    waits = [event for event in events if event["event"] == "on_custom_event"]
    assert {event["name"] for event in waits} == {EVENT}
    assert is_told([event["data"]["stage"] for event in waits])


def test_a_handler_that_fails_does_not_fail_the_call(model: ChatVllmMlx):
    """LangChain logs it, as it does everywhere."""

    class Failing(BaseCallbackHandler):
        def on_custom_event(self, name, data, **kwargs):
            raise ValueError(name)

    assert model.invoke("hi", config={"callbacks": [Failing()]}).text
