"""What a reranker is used for: order, batches, loops, failures, copies."""

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.published_configs import CROSS_ENCODER
from fakes.weights import weights_of
from langchain_core import exceptions as core
from langchain_core.documents import Document
from langchain_core.load import dumpd

from langchain_car_vllm import ChatVllmMlx, VllmMlxReranker
from langchain_car_vllm.errors import ConfigurationError, UnservableModelError
from langchain_car_vllm.models.cross_encoder import check_cross_encoder
from langchain_car_vllm.server.plan import plan_for

TEXTS = ["bread and flour", "two moons", "the two moons of mars", "mars", "a train"]
QUERY = "the moons of mars"


@pytest.fixture
def server() -> Iterator[Server]:
    """A served cross-encoder."""
    with Server(Dialect("r")) as running:
        yield running


@pytest.fixture
def reranker(server: Server) -> VllmMlxReranker:
    """A reranker that asks it, in batches of two."""
    return VllmMlxReranker(model="r", base_url=server.base_url, batch_size=2)


def test_the_best_documents_come_first_with_their_scores(reranker, server):
    """Batches are merged, the documents stay as they are, sync and async agree."""
    documents = [Document(text, metadata={"n": n}, id=str(n)) for n, text in enumerate(TEXTS)]
    before = copy.deepcopy(documents)
    found = reranker.compress_documents(documents, QUERY)
    assert [d.id for d in found] == ["2", "3", "1"]
    assert server.dialect.paths.count("/v1/rerank") == 3
    scores = [d.metadata["relevance_score"] for d in found]
    assert scores == sorted(scores, reverse=True)
    assert documents == before
    assert asyncio.run(reranker.acompress_documents(documents, QUERY)) == found


def test_one_document_is_refused_as_one(reranker):
    """It can be gone through, and its fields are no documents."""
    with pytest.raises(ConfigurationError, match="not one document"):
        reranker.compress_documents(Document("a"), QUERY)


@pytest.mark.parametrize("odd", ["text", ["text"], [Document("a"), "text"], [None], None, {"a": 1}])
def test_what_is_no_document_is_refused(reranker, server, odd):
    """With what to do about texts, before anybody is asked."""
    with pytest.raises(ConfigurationError, match="a list of documents is expected"):
        reranker.compress_documents(odd, QUERY)
    with pytest.raises(ConfigurationError, match="a list of documents is expected"):
        asyncio.run(reranker.acompress_documents(odd, QUERY))
    assert "/v1/rerank" not in server.dialect.paths


def test_documents_may_come_in_anything_that_yields_them(reranker):
    """As a lazy loader does, which can be read once."""
    documents = [Document(text) for text in TEXTS]
    wanted = reranker.compress_documents(documents, QUERY)
    assert reranker.compress_documents(iter(documents), QUERY) == wanted
    assert asyncio.run(reranker.acompress_documents(iter(documents), QUERY)) == wanted


def test_every_text_has_its_place(reranker):
    """All of them without `top_n`, equals in their order, and nobody is asked for nothing."""
    everything = reranker.model_copy(update={"top_n": None})
    found = everything.rerank([*TEXTS, "mars"], QUERY)
    assert sorted(place for place, _ in found) == list(range(6))
    places = [place for place, _ in found]
    assert places.index(3) < places.index(5)
    assert asyncio.run(everything.arerank([*TEXTS, "mars"], QUERY)) == found
    assert reranker.compress_documents([], QUERY) == []
    assert len(reranker.rerank(["one"], QUERY)) == 1


def test_what_the_server_refuses_is_told_in_its_words(reranker):
    """A text that is too long is never cut off in silence."""
    with pytest.raises(core.ModelInvalidRequestError, match="document 1 is too long"):
        reranker.rerank(["short", "word " * 600], QUERY)
    with pytest.raises(core.ModelInvalidRequestError, match="Query must not be empty"):
        asyncio.run(reranker.arerank(TEXTS, " "))


@pytest.mark.parametrize(
    "scores",
    [
        lambda results: results[:-1],
        lambda results: [results[0]] * len(results),
        lambda results: [*results, results[0]],
        lambda results: [{**result, "relevance_score": "high"} for result in results],
        lambda results: [{**result, "relevance_score": float("nan")} for result in results],
        lambda results: [{"index": result["index"]} for result in results],
        lambda results: [{**result, "index": 1e400} for result in results],
        lambda results: None,
        lambda results: 5,
    ],
)
def test_what_is_not_one_score_for_each_text_is_a_typed_error(reranker, server, scores):
    """A missing score would shift texts and scores against each other."""
    server.dialect.scores = scores
    with pytest.raises(core.ModelAPIError, match="score"):
        reranker.rerank(["a", "b"], QUERY)
    with pytest.raises(core.ModelAPIError, match="score"):
        asyncio.run(reranker.arerank(["a", "b"], QUERY))


def test_a_used_reranker_survives_pickle_and_copies(reranker):
    """No client sticks to the object, and a second loop works."""
    expected = reranker.rerank(TEXTS, QUERY)
    for other in (pickle.loads(pickle.dumps(reranker)), copy.deepcopy(reranker)):
        assert asyncio.run(other.arerank(TEXTS, QUERY)) == expected


def test_it_asks_for_a_server_of_its_own():
    """Another than a chat model or embeddings of the same name would have."""
    reranker = VllmMlxReranker(model="org/ranker", keep_alive="1h", server_env={"TOKEN": "secret"})
    found = reranker._spec(kind="reranker")
    assert (found.kind, found.keep_alive) == ("reranker", 3600)
    keys = {reranker._spec(kind=kind).key() for kind in ("chat", "embeddings", "reranker")}
    assert len(keys) == 3
    assert "secret" not in repr(reranker) + json.dumps(dumpd(reranker), default=str)
    assert ChatVllmMlx(model="org/ranker")._spec().kind == "chat"


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("top_n", 0, "top_n"),
        ("batch_size", 0, "batch_size"),
        ("timeout", -1, "timeout"),
        ("top_k", 3, "top_n"),
        ("topn", 3, "top_n"),
        ("api_base", "x", "base_url"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, value, right):
    """With the right name where another was meant."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        VllmMlxReranker(model="org/ranker", **{name: value})
    assert right in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["BertModel"]}, "`BertModel`, not a cross-encoder"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "`Qwen3ForCausalLM`"),
        ({"architectures": None}, "without a classifier"),
        ({"architectures": [7, {}]}, "without a classifier"),
        ({"model_type": "deberta-v2"}, "`deberta-v2`"),
        ({"model_type": ["bert"]}, "`model_type`"),
        ({"id2label": {"0": "no", "1": "yes"}}, "2 classes"),
        ({"quantization": {"bits": 4}}, "quantised"),
        ({"hidden_act": "mish"}, "`mish`"),
    ],
)
def test_another_kind_of_model_is_refused_before_a_start(tmp_path: Path, changes, reason):
    """The server would load it and fail at the first request, or give wrong scores."""
    check_cross_encoder(CROSS_ENCODER, "org/ranker")
    (tmp_path / "model.safetensors").write_bytes(weights_of(64))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({**CROSS_ENCODER, **changes}))
    spec = VllmMlxReranker(model=str(tmp_path))._spec(kind="reranker")
    with pytest.raises(UnservableModelError, match=reason):
        plan_for(spec)
    (tmp_path / "config.json").write_text(json.dumps(CROSS_ENCODER))
    assert plan_for(spec).facts.weights_bytes
