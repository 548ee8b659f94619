"""The mend of the order in which prompts are read: each in its turn, short ones in between."""

import types
from collections.abc import Sequence

import pytest

from langchain_car_vllm.server.supervisor.mends import prompt_order
from langchain_car_vllm.server.supervisor.mends.mend import UnknownCodeError


class Tokens(list):
    """As an array has them."""

    def reshape(self, *_: int) -> "Tokens":
        return self

    def tolist(self) -> list[int]:
        return list(self)


class Request:
    """One that waits."""

    def __init__(self, uid: int, tokens: Sequence[int] | int | None, images: int = 0) -> None:
        given = range(tokens) if isinstance(tokens, int) else tokens
        self.uid, self.input_ids = uid, None if given is None else Tokens(given)
        self.images, self.videos, self.audio = [None] * images, None, None


class Batch(list):
    """Those who are answered."""


class Cache:
    """Keeps prompts, by their tokens."""

    def __init__(self, *prompts: Sequence[int]) -> None:
        self._entries = dict.fromkeys(map(tuple, prompts))

    def __contains__(self, tokens: list[int]) -> bool:
        return tuple(tokens) in self._entries


class Generator:
    """Reads as vllm-mlx does: whatever it sees, and none of what it does not."""

    def __init__(self) -> None:
        self.unprocessed_requests: list[Request] = []
        self._partial: Request | None = None
        self._allow_mid_batch_extend = True
        self.active_batch: Batch | None = None
        self.completion_batch_size = 3
        self.model = types.SimpleNamespace(config=types.SimpleNamespace(model_type="qwen3_5"))
        self.prefix_cache: Cache | None = Cache()
        self.seen: list[list[int]] = []
        self.broken: set[int] = set()
        self.unreadable: set[int] = set()

    def insert(self, requests: Sequence[Request]) -> None:
        for uid, request in enumerate(requests):
            request.uid = uid
            self.unprocessed_requests.append(request)

    def _process_prompts(self, requests: list[Request]) -> Batch | None:
        (request,) = requests
        if request.uid in self.unreadable:
            return None
        if request.uid in self.broken:
            raise RuntimeError("no")
        return Batch([request.uid])

    def _next(self) -> list[str]:
        self.seen.append([request.uid for request in self.unprocessed_requests])
        if self._partial is None and self.unprocessed_requests:
            self._partial = self.unprocessed_requests.pop(0)
        return ["responses"]


def install(batch_gen: Generator, budget: int) -> None:
    """Have prompts be read in parts."""

    def chunked_next() -> list[str]:
        assert budget
        assert (batch_gen.unprocessed_requests, batch_gen.active_batch) is not None
        return read()

    read, batch_gen._next, batch_gen._partial = batch_gen._next, chunked_next, None


def module_of(**other: object) -> types.SimpleNamespace:
    known = {
        "MLLMBatchGenerator": Generator,
        "MemoryAwarePrefixCache": Cache,
        "install_chunked_prefill_mllm": install,
    }
    return types.SimpleNamespace(**{**known, **other})


def mended(made: Generator) -> Generator:
    """Return a generator with the mend, whose parts have ten tokens."""
    module = module_of()
    prompt_order._read_in_order.apply(module)
    module.install_chunked_prefill_mllm(made, 10)
    return made


@pytest.fixture
def generator() -> Generator:
    return mended(Generator())


def waiting(generator: Generator) -> list[int]:
    return sorted(request.uid for request in generator.unprocessed_requests)


def test_each_step_sees_the_oldest_prompt_alone(generator: Generator):
    """However the generator sorts them: a picture that came first is first."""
    generator.unprocessed_requests = [Request(3, 90), Request(2, 90), Request(1, 90, images=1)]
    assert generator._next() == ["responses"]
    assert generator.seen == [[1]]
    assert waiting(generator) == [2, 3]


def test_short_prompts_are_read_once_while_a_long_one_is_read(generator: Generator):
    """One at each step, in order; long ones and pictures wait, and none is seen twice."""
    generator._partial = Request(0, 99)
    generator.unprocessed_requests = [
        Request(1, 11),
        Request(2, 5, images=1),
        Request(3, None),
        Request(4, 10),
        Request(5, 3),
    ]
    for left in ([1, 2, 3, 5], [1, 2, 3], [1, 2, 3]):
        generator._next()
        assert waiting(generator) == left
    assert generator.active_batch == [4, 5]
    assert generator.seen == [[], [], []]


def test_a_prompt_that_the_cache_has_is_short(generator: Generator):
    """All but a part of it, from its beginning."""
    generator._partial = Request(0, 99)
    generator.prefix_cache = Cache(range(90), range(50, 100), [7])
    generator.unprocessed_requests = [Request(1, range(101)), Request(2, range(100))]
    generator._next()
    assert generator.active_batch == [2]
    generator.prefix_cache = None
    generator.unprocessed_requests = [Request(3, range(100)), Request(4, 1)]
    generator._next()
    assert generator.active_batch == [2, 4]


def test_what_fails_between_waits_for_its_turn(generator: Generator, capsys):
    """There the generator tells it; the others are read meanwhile."""
    generator._partial = Request(0, 99)
    generator.broken = {1}
    generator.unprocessed_requests = [Request(1, 3), Request(2, 3)]
    for _ in range(3):
        generator._next()
    assert waiting(generator) == [1]
    assert generator.active_batch == [2]
    assert capsys.readouterr().err.count("RuntimeError: no") == 1


def test_a_picture_is_read_in_its_turn_and_answered_with_the_others(generator: Generator):
    """One at a step, as long as there is room; one that comes first waits for nobody's answer."""
    generator.active_batch = Batch([0])
    generator.unprocessed_requests = [Request(uid, 99, images=1) for uid in (1, 2, 3)]
    for answered, left in (([0, 1], [2, 3]), ([0, 1, 2], [3]), ([0, 1, 2], [])):
        generator._next()
        assert generator.active_batch == answered
        assert waiting(generator) == left
    assert generator.seen == [[], [], [3]]


def test_a_picture_that_cannot_be_read_is_nobody_elses_matter(generator: Generator, capsys):
    """The generator has told of it, or tells where it stands alone; nobody is read twice."""
    generator.active_batch, generator.unreadable, generator.broken = Batch([0]), {1}, {2}
    generator.unprocessed_requests = [Request(uid, 99, images=1) for uid in (1, 2)]
    generator._next()
    assert waiting(generator) == [2]
    generator._next()
    assert generator.seen == [[], [2]]
    assert generator.active_batch == [0]
    assert capsys.readouterr().err.count("RuntimeError: no") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda generator, request: setattr(generator, "_allow_mid_batch_extend", False),
        lambda generator, request: setattr(generator, "active_batch", None),
        lambda generator, request: setattr(generator.model.config, "model_type", "another"),
        lambda generator, request: delattr(generator.model, "config"),
        lambda generator, request: setattr(request, "videos", ["v"]),
        lambda generator, request: setattr(request, "audio", ["a"]),
        lambda generator, request: setattr(request, "images", []),
    ],
)
def test_what_may_not_join_is_read_by_the_generator(generator: Generator, change):
    """A model that may keep positions of its own, for one, or another medium."""
    generator.active_batch = Batch([0])
    request = Request(1, 99, images=1)
    generator.unprocessed_requests = [request, Request(2, 3)]
    change(generator, request)
    generator._next()
    assert generator.seen == [[1]]


def test_nobody_joins_where_nobody_may(generator: Generator):
    """Answers with a draft model are given alone."""
    generator._partial = Request(0, 99)
    generator._allow_mid_batch_extend = False
    generator.unprocessed_requests = [Request(1, 3)]
    generator._next()
    assert waiting(generator) == [1]


def test_a_step_that_fails_loses_nobody():
    """Whoever was hidden waits on."""

    class Broken(Generator):
        def _next(self) -> list[str]:
            raise MemoryError

    made = mended(Broken())
    made.unprocessed_requests = [Request(1, 3), Request(2, 3)]
    with pytest.raises(MemoryError):
        made._next()
    assert waiting(made) == [1, 2]


def test_a_generator_that_works_otherwise_is_left_alone():
    """Its programs then take turns."""

    def other(batch_gen: Generator, budget: int) -> None:
        batch_gen._next, batch_gen.unprocessed_requests = None, [budget]

    module = module_of(install_chunked_prefill_mllm=other)
    with pytest.raises(UnknownCodeError, match="other uses no _partial, active_batch"):
        prompt_order._read_in_order.apply(module)
    assert module.install_chunked_prefill_mllm is other
