"""What a model that takes media holds of a request whose client has gone."""

import types
from collections.abc import Callable

import pytest

from langchain_car_vllm.server.supervisor.mends import request_end


class Generator:
    """Removes requests at the beginning of a step, as they may not be at any other time."""

    def __init__(self) -> None:
        self._pending_removal_uids: set[int] = set()
        self.held = {1}

    def process_pending_removals(self) -> None:
        self.held -= self._pending_removal_uids
        self._pending_removal_uids = set()


class Scheduler:
    """Knows nothing of a request once it is aborted."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.running: dict[int, str] = {1: "running"}
        self.batch_generator: Generator | None = Generator()

    def has_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def abort_request(self, request_id: int) -> None:
        assert self.batch_generator is not None
        self.batch_generator._pending_removal_uids.add(request_id)
        del self.running[request_id]

    def step(self) -> None:
        assert self.batch_generator is not None
        self.batch_generator.process_pending_removals()


@pytest.fixture
def cleared() -> list[str]:
    return []


@pytest.fixture
def scheduler(cleared: list[str]) -> Scheduler:
    def clear() -> None:
        cleared.append("cache")

    def mended(kind: type, name: str) -> type:
        return type(name, (kind,), {})

    module = types.SimpleNamespace(
        MLLMScheduler=mended(Scheduler, "MLLMScheduler"),
        MLLMBatchGenerator=mended(Generator, "MLLMBatchGenerator"),
        mx=types.SimpleNamespace(clear_cache=clear),
    )
    request_end._let_go_of_the_last.apply(module)
    made = module.MLLMScheduler()
    made.batch_generator = module.MLLMBatchGenerator()
    return made


def test_the_last_request_is_let_go_of(scheduler: Scheduler, cleared: list[str]):
    """There is one more step for it, and what it took is given back."""
    scheduler.step()
    assert cleared == []
    scheduler.abort_request(1)
    assert scheduler.has_requests()
    scheduler.step()
    assert scheduler.batch_generator
    assert scheduler.batch_generator.held == set()
    assert cleared == ["cache"]
    assert not scheduler.has_requests()


@pytest.mark.parametrize(
    "change", [lambda s: s.waiting.append(2), lambda s: setattr(s, "batch_generator", None)]
)
def test_else_there_is_work_where_there_was(
    scheduler: Scheduler, change: Callable[[Scheduler], None]
):
    """Somebody waits, or nothing was ever answered."""
    scheduler.running.clear()
    assert not scheduler.has_requests()
    change(scheduler)
    assert scheduler.has_requests() is bool(scheduler.waiting)
