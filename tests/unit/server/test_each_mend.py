"""What single mends of the server do: for tokens, chunks, caches and adapters."""

import asyncio
import sys
import types
from pathlib import Path

import pytest

from langchain_car_vllm.server.supervisor.mends import (
    adapters,
    batch_rows,
    logprobs,
    media_prompts,
    memory_limits,
    open_pages,
    picture_prompts,
    prefix_after_hit,
    prepared_pictures,
    request_count,
    request_end,
)
from langchain_car_vllm.server.supervisor.mends.mend import UnknownCodeError


async def test_only_failures_close_the_connection():
    """A 500 says `connection: close`; a 200 and a 400 stay as they are."""
    sent = []

    class Cycle:
        async def send(self, message):
            sent.append(message)

    class Module:
        RequestResponseCycle = Cycle

    request_end._close_after_failure.apply(Module)
    for status in (200, 400, 500, 503):
        await Cycle().send({"type": "http.response.start", "status": status, "headers": []})
    await Cycle().send({"type": "http.response.body"})
    assert [message.get("headers") for message in sent] == [
        [],
        [],
        [(b"connection", b"close")],
        [(b"connection", b"close")],
        None,
    ]


@pytest.mark.parametrize(
    ("path", "hosts", "status"),
    [
        ("/health", ["127.0.0.1:8000"], 200),
        ("/health", ["localhost:8000"], 200),
        ("/health", ["LocalHost."], 200),
        ("/health", ["[::1]:8000"], 200),
        ("/health", ["192.168.1.7"], 200),
        ("/health", [], 200),
        ("/health", ["evil.example:8000"], 421),
        ("/docs", ["127.0.0.1.evil.example"], 421),
        ("/openapi.json", ["localhost.evil.example"], 421),
        ("/redoc", ["127.0.0.1", "evil.example"], 421),
        ("/health", [""], 421),
        ("/health", ["[evil.example]"], 421),
        ("/v1/models", ["models.example"], 200),
    ],
)
async def test_open_pages_have_no_foreign_name(path: str, hosts: list[str], status: int):
    """A web page may have its own name lead here; where a key is needed the name says nothing."""
    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "path": path, "headers": headers}
    await open_pages.OwnHosts(app)(scope, None, send)
    assert sent[0]["status"] == status


async def test_the_status_tells_how_many_requests_have_arrived():
    """From their arrival to their end, however they end; looks at the server are none."""
    told, arrived, may_end = [], asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        if scope.get("method") == "POST":
            arrived.set()
            await may_end.wait()
            raise ConnectionError
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message):
        told.append(dict(message["headers"]))

    counted = request_count.RequestCount(app)

    async def look(path: str) -> dict[bytes, bytes]:
        await counted({"type": "http", "method": "GET", "path": path}, None, send)
        return told.pop()

    await counted({"type": "lifespan"}, None, send)
    assert told.pop() == {b"a": b"b"}
    assert await look("/v1/status") == {b"a": b"b", request_count.HEADER: b"0"}
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    requests = [asyncio.create_task(counted(scope, None, send)) for _ in range(3)]
    await arrived.wait()
    assert await look("/health") == {b"a": b"b"}
    assert (await look("/v1/status"))[request_count.HEADER] == b"3"
    requests[0].cancel()
    await asyncio.wait(requests[:1])
    assert (await look("/v1/status"))[request_count.HEADER] == b"2"
    may_end.set()
    await asyncio.wait(requests)
    assert (await look("/v1/status"))[request_count.HEADER] == b"0"


def test_the_context_ends_with_the_token_that_is_read():
    """A request's own list gets the token of its row added, a list made for the step stays."""

    class Tokens(list):
        def reshape(self, _):
            return self

        def tolist(self):
            return list(self)

    class Request:
        def __init__(self, output_tokens):
            self.output_tokens = output_tokens

    class Generator:
        def _step(
            self, input_tokens, cache, logits_processors=None, output_tokens=None, samplers=None
        ):
            return output_tokens

    class Module:
        MLLMBatchGenerator = Generator

        install_chunked_prefill_mllm = staticmethod(lambda batch_gen, budget=1: None)

    batch_rows._complete_contexts.apply(Module)
    generator = Generator()
    own, made = [1, 2], [3, 4]
    generator.active_batch = type("B", (), {"requests": [Request(own), Request([3])]})
    assert generator._step(Tokens([7, 8]), [], [], [own, made]) == [[1, 2, 7], [3, 4]]
    assert own == [1, 2]
    assert generator._step(Tokens([7, 8]), [], None, None) is None


class Unknown:
    """Something of another version: whatever is looked for is not there."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(name)


def test_unknown_chunks_cost_no_answer(capfd: pytest.CaptureFixture):
    """Where a prompt in chunks is noted otherwise, steps go on, and the log tells once."""
    generator = types.SimpleNamespace(
        _answer_beginnings=[[1]], _question_opening=[2], _partial={"request": Unknown()}
    )
    for _ in range(2):
        step = lambda: ["an answer"]  # noqa: E731
        assert media_prompts._step_with_checkpoint(generator, step) == ["an answer"]
    assert capfd.readouterr().err.count("`prefix-ends-of-messages` stepped aside") == 1


def test_what_cannot_be_kept_costs_no_answer():
    """Whatever is raised while a prompt is stored, the prompt has been read and is answered."""

    class Generator:
        prefix_cache = Unknown()

        def _process_prompts(self, requests):
            self._clone_prefix_for_replay(["cache"])
            requests[0].logits_processors[0]([], 1)
            return types.SimpleNamespace(logits_processors=[requests[0].logits_processors])

        def _needs_prefill_checkpoint(self, cache_list):
            raise AssertionError

        def _publish_prefill_checkpoint(self, request_id, checkpoint_entry):
            raise AssertionError

        def _clone_prefix_for_replay(self, cache_list):
            return cache_list

        def _cache_leaves(self, cache_list):
            raise RuntimeError

    module = types.SimpleNamespace(
        MLLMBatchGenerator=Generator, is_text_only_prefix_cache_request=lambda request: True
    )
    prefix_after_hit._keep_prompts_after_hits.apply(module)
    batch = Generator()._process_prompts([types.SimpleNamespace(logits_processors=None)])
    assert batch.logits_processors is None


@pytest.mark.parametrize("is_one_by_one", [True, False])
def test_no_picture_is_found_in_part(*, is_one_by_one: bool):
    """What stands for a picture in a key is below zero; no model may get half of one to read.

    A model that reads pictures one by one reads those behind what was found, others all or none.
    """

    class Cache:
        reads_pictures_one_by_one = is_one_by_one
        _stats = types.SimpleNamespace(hits=0, misses=0, tokens_saved=0)

        def fetch(self, tokens: list[int]) -> tuple[str, list[int]]:
            self._stats.hits += 1
            self._stats.tokens_saved += 2
            return "found", tokens[2:]

    picture_prompts._find_whole_pictures(Cache)
    assert Cache().fetch([1, -5, 2, 3]) == ("found", [2, 3])
    assert vars(Cache._stats) == {"hits": 1, "misses": 0, "tokens_saved": 2}
    assert Cache().fetch([1, -5, -6, 3]) == (None, [1, -5, -6, 3])
    assert vars(Cache._stats) == {"hits": 1, "misses": 1, "tokens_saved": 2}
    assert Cache().fetch([1, -5]) == ("found", [])
    for behind in ([-5, 3], [3, -5]):
        tokens = [1, 2, *behind]
        assert Cache().fetch(tokens) == (("found", behind) if is_one_by_one else (None, tokens))


@pytest.mark.parametrize(
    ("path", "is_served"),
    [
        ("/hub/models--org--name/snapshots/abc", True),
        ("/hub/models--Org--Name/snapshots/abc", True),
        ("/hub/models--org--name-draft/snapshots/abc", False),
        ("/models/name", False),
    ],
)
def test_an_adapter_goes_on_no_model_whose_name_begins_like_its_own(
    monkeypatch: pytest.MonkeyPatch, path: str, is_served: bool
):
    """A draft model is often called what the model is called, and more."""
    monkeypatch.setattr(sys, "argv", ["vllm-mlx", "serve", "org/name"])
    assert adapters._is_served(path) is is_served


def test_weights_are_counted_once(tmp_path: Path):
    """Wiring more than the weights is what they are counted for; a copy is not loaded."""
    for name in ("model-1.safetensors", "consolidated.safetensors", "._model-1.safetensors"):
        (tmp_path / name).write_bytes(b"x" * 10)
    assert memory_limits.weights_bytes(str(tmp_path)) == 10


class OddLogits(list):
    """Logits of a kind that the server's arrays have not."""

    def reshape(self, _: int) -> "OddLogits":
        return self

    def astype(self, _: object) -> "OddLogits":
        raise ValueError("no such type")


def test_what_cannot_be_noted_costs_no_answer(capfd: pytest.CaptureFixture):
    """Logits go on as they are, and the log tells once."""
    mx = types.SimpleNamespace(float32="float32")
    notes = logprobs.LogprobNotes(mx, types.SimpleNamespace(eos_token_id=0), 3)
    logits = OddLogits([1, 2, 3])
    assert [notes([7], logits) for _ in range(3)] == [logits] * 3
    assert notes.take() == []
    assert capfd.readouterr().err.count("`logprobs` stepped aside") == 1


@pytest.mark.parametrize(
    ("piece", "text", "raw"),
    [
        ("<0xE2>", "\ufffd", b"\xe2"),
        ("<0x41>", "A", b"A"),
        ("<0xyz>", "?", b"?"),
        ("<0xabc", "?", b"?"),
        ("Ġmoon", "?", b"?"),
        (None, "?", b"?"),
    ],
)
def test_any_token_has_a_text_and_bytes(piece: str | None, text: str, raw: bytes):
    """What only looks like a byte is a text."""
    tokenizer = types.SimpleNamespace(
        eos_token_id=0, decode=lambda tokens: "?", convert_ids_to_tokens=lambda token: piece
    )
    assert logprobs.LogprobNotes(None, tokenizer, 0)._text_of(5) == (text, raw)


def test_log_probabilities_of_the_servers_own_are_left_to_it():
    """Where a version has them, requests are not noted a second time."""

    class Choice:
        model_fields = types.MappingProxyType({"logprobs": types.SimpleNamespace()})

    module = types.SimpleNamespace(
        _prepare_chat_completion_invocation=lambda engine, request: None,
        stream_chat_completion=lambda engine, messages, request, **kwargs: None,
        _get_engine_tokenizer=lambda engine: None,
        ChatCompletionChoice=Choice,
    )
    before = dict(vars(module))
    with pytest.raises(UnknownCodeError):
        logprobs._send_notes.apply(module)
    assert vars(module) == before


def picture_cache() -> type:
    """Return a class that keeps what was prepared for a prompt, as the server's does."""

    class Cache:
        def __init__(self):
            self._pixel_cache = {}

        def set_pixel_cache(self, images, prompt, pixel_values, input_ids=None, extra_kwargs=None):
            self._pixel_cache[prompt] = types.SimpleNamespace(
                pixel_values=pixel_values, input_ids=input_ids, extra_kwargs=extra_kwargs
            )

    return Cache


def test_prepared_pictures_take_little_memory():
    """The oldest go first, and what is too large for itself is not kept at all."""
    cache = picture_cache()
    prepared_pictures._keep_few_pictures.apply(types.SimpleNamespace(VisionEmbeddingCache=cache))
    half, parts = (types.SimpleNamespace(nbytes=n * 2**20) for n in (60, 30))
    kept = cache()
    for prompt in "abcd":
        kept.set_pixel_cache(["x"], prompt, pixel_values=half, input_ids=None)
    assert list(kept._pixel_cache) == ["c", "d"]
    kept.set_pixel_cache(["x"], "e", [parts, parts], extra_kwargs={"grid": [parts], "n": 3})
    assert list(kept._pixel_cache) == ["e"]
    kept.set_pixel_cache(["x"], "f", types.SimpleNamespace(nbytes=2**30))
    assert not kept._pixel_cache


def test_a_picture_that_is_asked_about_again_has_all_it_had():
    """A request's own inputs are emptied once it has been read."""
    cache = picture_cache()
    prepared_pictures._keep_few_pictures.apply(types.SimpleNamespace(VisionEmbeddingCache=cache))
    kept, inputs = cache(), {"image_sizes": [1]}
    kept.set_pixel_cache(["x"], "a", "pixels", extra_kwargs=inputs)
    kept.set_pixel_cache(["x"], "b", "pixels", None, inputs)
    inputs.clear()
    assert [kept._pixel_cache[prompt].extra_kwargs for prompt in "ab"] == 2 * [{"image_sizes": [1]}]


def test_another_cache_of_pictures_is_left_alone():
    """It may keep them elsewhere, and bound them by itself."""
    cache = type("Other", (picture_cache(),), {"__init__": lambda _: None})
    with pytest.raises(UnknownCodeError):
        prepared_pictures._keep_few_pictures.apply(
            types.SimpleNamespace(VisionEmbeddingCache=cache)
        )
