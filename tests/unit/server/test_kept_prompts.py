"""What has text models' prompts be read in pieces and stored: aside where it must, and freed."""

import gc
import sys
import types
import weakref
from functools import partial

import pytest

from langchain_car_vllm.server.supervisor.mends import text_order, text_prompts


@pytest.fixture
def recurrent_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have models say that their caches cannot be rewound."""
    cache = types.ModuleType("mlx_lm.models.cache")
    cache.make_prompt_cache = lambda model: [type("ArraysCache", (), {})()]
    for name in ("mlx_lm", "mlx_lm.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mlx_lm.models.cache", cache)


class Batches:
    """Reads prompts, and tells of them in a way of its own."""

    def __init__(self) -> None:
        self.read: list[object] = []

    def insert(self, prompts: object, **_: object) -> list[int]:
        self.read.append(prompts)
        return [1]

    insert_segments = insert

    def next(self) -> tuple[list[object], list[str]]:
        return [object()], ["an answer"]


@pytest.mark.usefixtures("recurrent_caches")
def test_unknown_steps_cost_no_answer(capfd: pytest.CaptureFixture):
    """Where requests, or what a step tells, are noted otherwise, prompts are read as published."""
    batches = Batches()
    scheduler = types.SimpleNamespace(
        model=None, _actual_tokenizer=None, uid_to_request_id={1: "a"}
    )
    text_prompts.KeptPrompts(scheduler, batches)
    batches.insert([[1, 2, 3]])
    assert batches.read == [[[[1, 2], [3]]]]
    for _ in range(2):
        assert batches.next()[1] == ["an answer"]
    batches.insert([[1, 2, 3]])
    assert batches.read[1:] == [[[1, 2, 3]]]
    assert capfd.readouterr().err.count("`prefix-each-turn` stepped aside") == 1
    batches = Batches()
    text_prompts.KeptPrompts(types.SimpleNamespace(model=None, _actual_tokenizer=None), batches)
    assert batches.insert([[1, 2, 3]]) == [1]
    assert batches.read == [[[1, 2, 3]]]


@pytest.mark.usefixtures("recurrent_caches")
def test_what_has_failed_is_freed_at_once():
    """With the caches of all who were answered, before the next request takes as much."""

    class Scheduler:
        model = _actual_tokenizer = None

        def __init__(self) -> None:
            self.batch_generator: Batches | None = Batches()
            self._kept_prompts = text_prompts.KeptPrompts(self, self.batch_generator)
            step = self.batch_generator.next
            self.batch_generator.next = partial(text_order._step, self.batch_generator, step)

        def _close_batch_generator(self) -> None:
            self.batch_generator = None

    text_prompts._free_closed_batches.apply(types.SimpleNamespace(Scheduler=Scheduler))
    scheduler = Scheduler()
    former = weakref.ref(scheduler.batch_generator)
    gc.disable()
    try:
        scheduler._close_batch_generator()
        assert former() is None
    finally:
        gc.enable()
    scheduler._close_batch_generator()
