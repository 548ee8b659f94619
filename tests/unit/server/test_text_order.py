"""The mend that has short prompts be read between the parts of a long one, on text models."""

import contextlib
import sys
import types
from collections import deque

import pytest

from langchain_car_vllm.server.supervisor.mends import text_order
from langchain_car_vllm.server.supervisor.mends.mend import UnknownCodeError

STEP = 10


class Prompts(list):
    """Those who are read."""

    @classmethod
    def empty(cls, model: object, sampler: object, *, prefill_step_size: int) -> "Prompts":
        assert prefill_step_size == STEP
        return cls()


class Answers(list):
    """Those who are answered."""

    @classmethod
    def empty(cls, model: object, sampler: object) -> "Answers":
        return cls()


class BatchGenerator:
    """Reads as mlx-lm does: one prompt after the other, a part at each step."""

    model = sampler = _stream = None
    prefill_step_size = STEP
    completion_batch_size = 4

    def __init__(self, prefill_batch_size: int = 1) -> None:
        self.prefill_batch_size = prefill_batch_size
        self._prompt_batch, self._generation_batch = Prompts(), Answers()
        self._unprocessed_sequences: deque[tuple[str, list[list[int]]]] = deque()
        self._currently_processing: list[list] = []
        self.steps: list[str] = []

    def add(self, name: str, *segments: int) -> None:
        self._unprocessed_sequences.append((name, [[0] * length for length in segments]))

    def next(self) -> list[str]:
        assert self._stream is None
        return self._next()

    def _next(self) -> list[str]:
        assert len(self._generation_batch) < self.completion_batch_size
        if not self._currently_processing and self._unprocessed_sequences:
            name, segments = self._unprocessed_sequences.popleft()
            self._prompt_batch.append(name)
            self._currently_processing.append([segments, 0, sum(map(len, segments))])
        for entry in list(self._currently_processing):
            segments = entry[0]
            part = min(len(segments[0]), STEP)
            segments[0] = segments[0][part:]
            entry[0] = [each for each in segments if each]
            entry[1] += part
            self.steps.append(f"{self._prompt_batch[0]} {part}")
            if not entry[0]:
                self._currently_processing.remove(entry)
                self._generation_batch.append(self._prompt_batch.pop())
        return ["responses"]


class Scheduler:
    """Makes the generator."""

    def _create_batch_generator(self, sampling_params: BatchGenerator) -> BatchGenerator:
        return sampling_params


@pytest.fixture(autouse=True)
def _mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    core = types.ModuleType("mlx.core")
    core.stream = contextlib.nullcontext
    monkeypatch.setitem(sys.modules, "mlx", types.ModuleType("mlx"))
    monkeypatch.setitem(sys.modules, "mlx.core", core)


def mended(made: BatchGenerator) -> BatchGenerator:
    scheduler = type("Scheduler", (Scheduler,), {})
    module = types.SimpleNamespace(Scheduler=scheduler, BatchGenerator=BatchGenerator)
    text_order._read_short_ones_between.apply(module)
    return scheduler()._create_batch_generator(made)


def test_short_prompts_are_read_between_two_parts_of_a_long_one():
    """One at each step, in their order, in as many pieces as they have; long ones wait."""
    batches = mended(BatchGenerator())
    batches.add("long", 15, 20)
    batches.next()
    for name, *segments in (("next", 11), ("question", 3, 2), ("turn", 10)):
        batches.add(name, *segments)
    assert batches.next() == ["responses"]
    assert batches.steps == ["long 10", "question 3", "question 2", "long 5"]
    assert batches._generation_batch == ["question"]
    batches.next()
    assert batches.steps[4:] == ["turn 10", "long 10"]
    batches.next()
    assert batches._generation_batch == ["question", "turn", "long"]
    assert [name for name, _ in batches._unprocessed_sequences] == ["next"]


def test_what_has_only_a_part_left_is_not_overtaken():
    """Nor is anybody where the places for answers are taken."""
    batches = mended(BatchGenerator())
    batches.add("long", 20)
    batches.next()
    batches.add("question", 3)
    batches.next()
    assert batches.steps == ["long 10", "long 10"]
    batches = mended(BatchGenerator())
    batches._generation_batch.extend("abc")
    batches.add("long", 50)
    batches.next()
    batches.add("question", 3)
    batches.next()
    assert batches.steps == ["long 10", "long 10"]


def test_a_step_that_fails_takes_nobody_elses_place():
    """Who is read and who waits is as it was before; the server tells all of the failure."""
    made = BatchGenerator()
    batches = mended(made)
    batches.add("long", 50)
    batches.next()
    batches.add("question", 3)
    made.steps = None
    with pytest.raises(AttributeError):
        batches.next()
    assert batches._prompt_batch == ["long"]
    assert len(batches._currently_processing) == 1


def test_unknown_steps_cost_no_answer(capsys: pytest.CaptureFixture):
    """Where a prompt under way is noted otherwise, steps go on, and the log tells once."""
    batches = mended(BatchGenerator())
    batches.add("long", 50)
    batches.next()
    batches._currently_processing[0].append("new")
    batches._next = lambda: ["an answer"]
    for _ in range(2):
        assert batches.next() == ["an answer"]
    assert capsys.readouterr().err.count("`short-prompts-between` stepped aside") == 1


def test_prompts_that_are_read_together_stay_so():
    """So do those of a generator that another feature steps for."""
    assert "next" not in vars(mended(BatchGenerator(prefill_batch_size=8)))
    other = BatchGenerator()
    other._next = list
    assert "next" not in vars(mended(other))


def test_a_generator_that_works_otherwise_is_left_alone():
    """The mend finds out before it changes anything."""

    class Other(BatchGenerator):
        def _next(self) -> list[str]:
            return []

    scheduler = type("Scheduler", (Scheduler,), {})
    module = types.SimpleNamespace(Scheduler=scheduler, BatchGenerator=Other)
    with pytest.raises(UnknownCodeError, match="uses no _currently_processing"):
        text_order._read_short_ones_between.apply(module)
    assert "_create_batch_generator" not in vars(scheduler)
