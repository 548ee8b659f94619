"""Reranking on the real server, with a cross-encoder whose scores are known."""

import asyncio

import pytest
from langchain_core.documents import Document

from langchain_car_vllm import VllmMlxReranker
from langchain_car_vllm.errors import InvalidRequestError, UnservableModelError

TEXTS = [
    "Bread is made of flour and water.",
    "Mars has two moons.",
    "The moons of Jupiter are many, and Mars is small.",
    "mars",
]
QUERY = "How many moons has Mars?"


@pytest.fixture(scope="module")
def reranker(cross_encoder: str) -> VllmMlxReranker:
    """It scores by the share of a document's words that the query has."""
    return VllmMlxReranker(model=cross_encoder, top_n=None)


def test_documents_come_in_the_order_of_their_scores(reranker: VllmMlxReranker):
    """Scores are those of a pair with its segments, alone and in a batch, sync and async."""
    documents = [Document(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    found = reranker.compress_documents(documents, QUERY)
    assert [d.metadata["n"] for d in found] == [3, 1, 2, 0]
    scores = {d.metadata["n"]: d.metadata["relevance_score"] for d in found}
    assert scores[1] > 0.9
    assert scores[0] < 0.2
    for number, text in enumerate(TEXTS):
        ((_, alone),) = reranker.rerank([text], QUERY)
        assert alone == pytest.approx(scores[number], abs=1e-4)
    assert asyncio.run(reranker.acompress_documents(documents, QUERY)) == found


def test_a_text_that_is_too_long_is_an_error(reranker: VllmMlxReranker):
    """It is never cut off in silence."""
    with pytest.raises(InvalidRequestError, match=r"document 1 .* too long: .* reads 512"):
        reranker.rerank(["short", "word " * 600], QUERY)
    with pytest.raises(InvalidRequestError, match="Query must not be empty"):
        reranker.rerank(TEXTS, "  ")


def test_another_kind_of_model_is_refused_before_anything_starts(minilm: str):
    """Its own server would end at the first request."""
    with pytest.raises(UnservableModelError, match="not a cross-encoder"):
        VllmMlxReranker(model=minilm).rerank(TEXTS, QUERY)
