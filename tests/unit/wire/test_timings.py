"""Where the time of an answer went, and why the answer ended in LangChain's words."""

import asyncio
import threading
import time
from typing import Any

import pytest
from fakes.reply import Reply

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.progress.timings import Stopwatch

PATIENCE = 15.0
PARTS = {"start", "install", "download", "load", "queue", "total"}


async def _astreamed(model: ChatVllmMlx, **given: Any) -> Any:
    whole = None
    async for chunk in model.astream("hi", **given):
        whole = chunk if whole is None else whole + chunk
    return whole


def _streamed(model: ChatVllmMlx, **given: Any) -> Any:
    whole = None
    for chunk in model.stream("hi", **given):
        whole = chunk if whole is None else whole + chunk
    return whole


WAYS = {
    "invoke": lambda model: model.invoke("hi"),
    "ainvoke": lambda model: asyncio.run(model.ainvoke("hi")),
    "stream": _streamed,
    "astream": lambda model: asyncio.run(_astreamed(model)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_answer_tells_its_time(serve, way):
    """The parts are there, none is negative, and they fit into the whole."""
    model, _ = serve(Reply(text="one two three", usage=(40, 4)))
    timings = WAYS[way](model).response_metadata["timings"]
    assert set(timings) >= PARTS
    assert all(value >= 0 for value in timings.values())
    parts = [timings[name] for name in ("start", "queue", "prefill", "decode") if name in timings]
    assert sum(parts) <= timings["total"] + 0.001
    assert timings["completion_tokens_per_second"] > 0
    if "stream" in way:
        assert timings["prompt_tokens_per_second"] > 0
        assert timings["first_token"] == pytest.approx(
            timings["total"] - timings["decode"], abs=0.001
        )
    else:
        assert "prefill" not in timings


def test_a_stream_tells_its_time_on_the_last_chunk_alone(serve):
    """Chunks before it carry nothing more than before."""
    model, _ = serve(Reply(text="one two three"))
    *chunks, last = list(model.stream("hi"))
    assert "timings" in last.response_metadata
    assert not any("timings" in chunk.response_metadata for chunk in chunks)


class Clock:
    """Counts how often it is read."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return self.times.pop(0) if self.times else 100.0


def test_the_clock_is_not_read_for_chunks(serve):
    """A long answer reads it as often as a short one."""
    from langchain_core.messages import HumanMessage

    reads = []
    for text in ("one", "one " * 500):
        model, _ = serve(Reply(text=text))
        clock = Clock()
        chat = model._chat(model._external(None))
        assert list(chat._stream([HumanMessage("hi")], stopwatch=Stopwatch(clock)))
        reads.append(clock.read)
    assert reads[0] == reads[1]


def test_the_start_is_told_by_its_stages():
    """Install, download and load are summed; the rest of the start is waiting."""
    watch = Stopwatch(Clock(0, 1, 3, 6, 10, 10, 15, 16, 20))
    for stage in ("install", "download", "load"):
        watch.note(Progress(stage))
    watch.note_ready()  # reads at 10 and 10
    watch.note_sent(2.0, arrives_late=False)  # 15
    watch.note_first_token()  # 16
    timings = watch.timings(100, 9)  # 20
    assert (timings["install"], timings["download"], timings["load"]) == (2, 3, 4)
    assert (timings["start"], timings["queue"]) == (10, 2)
    assert (timings["prefill"], timings["first_token"], timings["decode"]) == (1, 16, 4)
    assert timings["prompt_tokens_per_second"] == 100
    assert timings["completion_tokens_per_second"] == 2
    assert timings["total"] == 20


def test_two_requests_of_a_call_have_no_prefill_of_their_own():
    """Nobody could say which of them it is."""
    watch = Stopwatch()
    watch.note_ready()
    watch.note_sent(0.0, arrives_late=False)
    watch.note_first_token()
    watch.note_sent(0.0, arrives_late=False)
    assert "prefill" not in watch.timings(1, 2)


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.usefixtures("impatient")
def test_the_status_tells_what_only_the_server_knows(serve, way):
    """Cached tokens, and the time to the first token of an answer that comes whole."""
    asked, began = threading.Event(), time.monotonic()
    model, dialect = serve(lambda _: Reply(text="at last", usage=(3266, 5), gate=asked))
    looks = []

    def status() -> dict[str, Any]:
        looks.append(1)
        if len(looks) > 1:
            asked.set()
        entry = {"phase": "generation", "elapsed_s": time.monotonic() - began, "ttft_s": 0.25}
        return {"requests": [{**entry, "prompt_tokens": 3266, "cached_tokens": 3252}]}

    dialect.status = status
    answer = WAYS[way](model)
    assert answer.usage_metadata["input_token_details"] == {"cache_read": 3252}
    if way == "invoke":
        timings = answer.response_metadata["timings"]
        assert timings["prefill"] == 0.25
        assert timings["prompt_tokens_per_second"] == 56  # of those that were read


def test_cached_tokens_of_another_request_are_not_ours(serve):
    """A status that speaks of a prompt of another length tells nothing of this one."""
    watch = Stopwatch()
    watch.note_ready()
    watch.note_sent(0.0, arrives_late=True)
    watch.cached_tokens = (3266, 3252)
    assert watch.tokens_from_cache(3266) == 3252
    assert watch.tokens_from_cache(3265) is None


@pytest.mark.parametrize(
    ("finish", "normalized", "state"),
    [
        ("stop", "stop", None),
        ("length", "length", "incomplete"),
        ("something_new", None, None),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_the_reason_is_told_in_langchains_words(serve, way, finish, normalized, state):
    """The raw reason stays; one that LangChain has no word for has none."""
    model, _ = serve(Reply(text="one two three", finish=finish))
    metadata = WAYS[way](model).response_metadata
    assert metadata["finish_reason"] == finish
    assert metadata.get("normalized_finish_reason") == normalized
    assert metadata.get("finish_state") == state


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_call_is_a_reason_of_its_own(serve, way):
    """LangChain says `tool_call`, the server `tool_calls`."""
    model, _ = serve(Reply(calls=[("weather", {"city": "Paris"})]))
    tool = {"name": "weather", "description": "", "parameters": {"type": "object"}}
    bound = model.bind(tools=[{"type": "function", "function": tool}])
    metadata = WAYS[way](bound).response_metadata
    assert metadata["finish_reason"] == "tool_calls"
    assert metadata["normalized_finish_reason"] == "tool_call"
