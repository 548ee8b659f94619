"""How the server samples: as each request asks, and within what the model has."""

import gc
import types
import weakref
from typing import NamedTuple

import pytest

from langchain_car_vllm.server.supervisor.mends import batch_rows, sampling
from langchain_car_vllm.server.supervisor.mends.mend import find


class Asked(NamedTuple):
    """How a request asks to be sampled."""

    temperature: float = 0.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0


def make_sampler(temp=0.0, top_p=0.0, min_p=0.0, top_k=0):
    return temp, top_p, min_p, top_k


def make_logits_processors(logit_bias=None, presence_penalty=None):
    return [f"penalty {presence_penalty}"] if presence_penalty else []


class Batches:
    """Notes what is added to a batch."""

    def __init__(self) -> None:
        self.rows = []

    def insert_segments(
        self,
        segments,
        max_tokens=None,
        caches=None,
        all_tokens=None,
        *,
        samplers=None,
        logits_processors=None,
    ):
        self.rows.append((samplers, logits_processors))
        self.found = all_tokens
        return [len(self.rows)]


class Scheduler:
    """Answers the first request's way until nobody is left."""

    def __init__(self) -> None:
        self.batch_generator, self.running, self.made = None, {}, []
        self.requests = {}

    def _ensure_batch_generator(self, sampling_params):
        self.made.append(sampling_params)
        self.batch_generator = self._create_batch_generator(sampling_params)

    def _create_batch_generator(self, sampling_params):
        return self.kind()

    def ask(self, asked: Asked) -> None:
        self._ensure_batch_generator(asked)
        self.batch_generator.insert_segments([[[1]]], [5], logits_processors=[["grammar"]])
        self.running[len(self.running)] = asked


@pytest.fixture
def scheduler() -> Scheduler:
    mended = type("Scheduler", (Scheduler,), {})
    module = types.SimpleNamespace(
        Scheduler=mended,
        BatchGenerator=type("Batches", (Batches,), {}),
        SamplingParams=Asked,
        make_sampler=make_sampler,
        make_logits_processors=make_logits_processors,
    )
    mended.kind = module.BatchGenerator
    sampling._sample_by_request.apply(module)
    return mended()


def test_each_request_is_sampled_as_it_asks(scheduler: Scheduler):
    """Whoever comes while others are answered has a sampler of its own, where it needs one."""
    scheduler.ask(Asked(temperature=1.5))
    scheduler.ask(Asked(temperature=1.5))
    scheduler.ask(Asked())
    scheduler.ask(Asked(temperature=1.5, top_k=20, presence_penalty=0.5))
    assert scheduler.batch_generator.rows == [
        (None, [["grammar"]]),
        (None, [["grammar"]]),
        ([(0.0, 0.9, 0.0, 0)], [["grammar"]]),
        ([(1.5, 0.9, 0.0, 20)], [["penalty 0.5", "grammar"]]),
    ]
    assert scheduler.made == [Asked(temperature=1.5)]


@pytest.mark.parametrize(
    ("segments", "found"),
    [
        ([[[3, 4]]], [[1, 2]]),
        ([[[2, 3], [4]]], [[1]]),
        ([[[1, 2, 3, 4]]], None),
        ([[[4, 4]]], None),
        ([[[4]], [[4]]], None),
    ],
)
def test_a_penalty_sees_what_was_found_in_the_cache(
    scheduler: Scheduler, segments: list, found: list | None
):
    """Or an answer would be another one as soon as its prompt was kept."""
    asked, other = Asked(), Asked()
    for params, prompt in ((other, [7, 8, 3, 4]), (asked, [1, 2, 3, 4])):
        request = types.SimpleNamespace(sampling_params=params, prompt_token_ids=prompt)
        scheduler.requests[len(scheduler.requests)] = request
    scheduler._ensure_batch_generator(asked)
    batches, rows = scheduler.batch_generator, [["penalty"]] * len(segments)
    batches.insert_segments(segments, [5], logits_processors=rows)
    assert batches.found == found
    batches.insert_segments(segments, [5], None, [[9]], logits_processors=rows)
    assert batches.found == [[9]]
    batches.insert_segments(segments, [5], logits_processors=[[]] * len(segments))
    assert batches.found is None


def test_what_has_answered_is_freed_at_once(scheduler: Scheduler):
    """It holds the logits of all rows, and a new one is made whenever requests ask otherwise."""
    scheduler.ask(Asked(temperature=0.5))
    former = weakref.ref(scheduler.batch_generator)
    scheduler.running.clear()
    gc.disable()
    try:
        scheduler.ask(Asked())
        assert former() is None
    finally:
        gc.enable()


def test_batches_of_others_are_left_alone(scheduler: Scheduler):
    """Whatever else is made of the class samples as before; the next mend finds what it knows."""
    batches = scheduler.kind()
    batches.insert_segments([[[1]]])
    assert batches.rows == [(None, None)]
    assert find(scheduler.kind, "insert_segments", "segments", "samplers")


def test_the_first_request_has_all_it_asks_for(scheduler: Scheduler):
    """What answers all is made without `top_k`; once nobody is answered it is made anew."""
    scheduler.ask(Asked(top_k=3))
    assert scheduler.batch_generator.rows == [([(0.0, 0.9, 0.0, 3)], [["grammar"]])]
    scheduler.running.clear()
    scheduler.ask(Asked(temperature=0.2))
    assert scheduler.batch_generator.rows == [(None, [["grammar"]])]


@pytest.mark.parametrize("name", ["PromptProcessingBatch", "GenerationBatch"])
def test_a_row_keeps_its_sampler(name: str):
    """Samplers of rows that have left are left with them, also where none had one."""

    class Batch:
        def __init__(self, uids, logits_processors, samplers):
            self.uids, self.logits_processors, self.samplers = uids, logits_processors, samplers

        def filter(self, keep):
            self.uids = [self.uids[place] for place in keep]
            if any(self.samplers):
                self.samplers = [self.samplers[place] for place in keep]

        def extend(self, batch):
            self.uids += batch.uids
            self.samplers += batch.samplers

    module = types.SimpleNamespace(PromptProcessingBatch=Batch, GenerationBatch=Batch)
    batch_rows._keep_processors_in_line.apply(module)
    batch = getattr(module, name)([1, 2, 3], [[], [], []], [None, None, None])
    batch.filter([1])
    batch.extend(Batch([4], [[]], ["own"]))
    batch.extend(Batch([5], [[]], []))
    assert (batch.uids, batch.samplers) == ([2, 4, 5], [None, "own", None])


class Numbers:
    """Logits of some tokens."""

    def __init__(self, *values: float) -> None:
        self.values, self.shape = list(values), (1, len(values))

    def astype(self, kind: str) -> "Numbers":
        return Numbers(*self.values)


def exact_module() -> types.SimpleNamespace:
    """A module of samplers that does what the server's does with what no model has."""

    def apply_top_p(logprobs, top_p):
        return logprobs

    def apply_top_k(logprobs, top_k):
        if top_k >= logprobs.shape[-1]:
            raise ValueError(top_k)
        return "likeliest"

    def make_sampler(temp=0.0, top_p=0.0, top_k=0):
        return lambda logprobs: (temp, logprobs)

    def make_logits_processors(logit_bias=None, repetition_penalty=None):
        def add(tokens, logits):
            for token, bias in logit_bias.items():
                logits.values[token] += bias
            return logits

        return [add] if logit_bias else ["penalty"] * bool(repetition_penalty)

    module = types.SimpleNamespace(
        mx=types.SimpleNamespace(float32="float32"),
        make_sampler=make_sampler,
        make_logits_processors=make_logits_processors,
        apply_top_p=apply_top_p,
        apply_top_k=apply_top_k,
    )
    sampling._sample_exactly.apply(module)
    return module


def test_a_bias_of_no_token_touches_nothing():
    """Tokens of other models are beyond the vocabulary: their bias was written into memory."""
    module = exact_module()
    bias = {1: 5.0, 3: 1.0, 50256: -100.0, -1: 7.0, 10**30: 1.0}
    add, penalty = module.make_logits_processors(bias, repetition_penalty=1.1)
    assert penalty == "penalty"
    assert add([], Numbers(0, 0, 0)).values == [0, 5.0, 0]
    assert add([], Numbers(0, 0, 0, 0)).values == [0, 5.0, 0, 1.0]
    (none,) = module.make_logits_processors({99: 1.0})
    assert none([], Numbers(0, 0)).values == [0, 0]
    assert module.make_logits_processors() == []


@pytest.mark.parametrize("top_k", [3, 4, 10**25])
def test_a_top_k_of_all_tokens_takes_all(top_k: int):
    """There are no others to leave out."""
    logits = Numbers(1, 2, 3)
    assert exact_module().apply_top_k(logits, top_k) is logits
    assert exact_module().apply_top_k(logits, 2) == "likeliest"


@pytest.mark.parametrize(
    ("temperature", "used"), [(0.7, 0.7), (1e-5, 1e-5), (1e-10, 0), (float("nan"), 0)]
)
def test_next_to_no_temperature_is_none(temperature: float, used: float):
    """The likeliest token is taken where nothing else could be drawn."""
    assert exact_module().make_sampler(temperature)(Numbers(1))[0] == used


NAN, INFINITE = float("nan"), float("inf")


class HTTPException(Exception):  # noqa: N818 - the server's name
    """What the server answers with a status."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(status_code, detail)


@pytest.fixture
def server() -> types.SimpleNamespace:
    """A module that takes what a request asks for as it is."""
    module = types.SimpleNamespace(
        HTTPException=HTTPException, _coerce_logit_bias=lambda logit_bias: logit_bias
    )
    for each in sampling._CHECKED:
        setattr(module, f"_resolve_{each}", lambda request_value: request_value)
    sampling._refuse.apply(module)
    return module


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("temperature", -0.1, "temperature must be 0 or more, not -0.1"),
        ("temperature", NAN, "temperature must be a finite number, not nan"),
        ("top_p", INFINITE, "top_p must be a finite number, not inf"),
        ("min_p", 1.5, "min_p must be at most 1, not 1.5"),
        ("min_p", -1.0, "min_p must be 0 or more, not -1.0"),
        ("repetition_penalty", -1.0, "repetition_penalty must be 0 or more, not -1.0"),
        ("presence_penalty", NAN, "presence_penalty must be a finite number, not nan"),
        ("temperature", 2.0, None),
        ("top_p", 1.0, None),
        ("min_p", 1.0, None),
        ("repetition_penalty", 1.1, None),
        ("presence_penalty", -2.0, None),
        ("temperature", None, None),
    ],
)
def test_what_nothing_can_be_sampled_with_is_refused(
    server: types.SimpleNamespace, name: str, value: float | None, problem: str | None
):
    """Before the request is admitted, where it would end all answers under way."""
    resolve = getattr(server, f"_resolve_{name}")
    if problem is None:
        assert resolve(value) == value
        return
    with pytest.raises(HTTPException) as caught:
        resolve(value)
    assert caught.value.args == (400, problem)


@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_a_bias_that_leaves_no_probabilities_is_refused(
    server: types.SimpleNamespace, value: float
):
    """A token may be forbidden for good, but not be the only one that counts."""
    assert server._coerce_logit_bias({5: 1.0, 6: -INFINITE}) == {5: 1.0, 6: -INFINITE}
    with pytest.raises(HTTPException) as caught:
        server._coerce_logit_bias({5: 1.0, 6: value})
    assert caught.value.args == (400, "logit_bias must hold numbers below infinity")


def test_no_share_is_the_likeliest_token(server: types.SimpleNamespace):
    """The server itself takes a `top_p` of 0 for all of them."""
    assert 0 < server._resolve_top_p(0) < 1e-3
