"""Embeddings on the real server, with a real model from a wheel."""

import asyncio
from typing import Any, ClassVar

import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from langchain_car_vllm import VllmMlxEmbeddings
from langchain_car_vllm.wire.errors import InvalidRequestError


@pytest.fixture(scope="module")
def embeddings(minilm: str) -> VllmMlxEmbeddings:
    """all-MiniLM-L6-v2, which knows 384 dimensions and 512 tokens."""
    return VllmMlxEmbeddings(model=minilm)


def test_texts_of_one_meaning_are_near_each_other(embeddings: VllmMlxEmbeddings):
    """Vectors are of length one, and the right document is the nearest."""
    query = embeddings.embed_query("Mars has two moons")
    found = embeddings.embed_documents(["The moons of Mars", "Bread and flour", "Trains"])
    near = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in found]
    assert len(query) == 384
    assert sum(x * x for x in query) == pytest.approx(1, abs=1e-3)
    assert near[0] > 0.7
    assert max(near[1:]) < 0.3


def test_many_texts_come_back_in_order(embeddings: VllmMlxEmbeddings):
    """More than one batch, on a loop."""
    texts = [f"number {n % 3}" for n in range(70)]
    found = asyncio.run(embeddings.aembed_documents(texts))
    assert found[0] == pytest.approx(found[69], abs=1e-3)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_a_text_that_is_too_long_is_an_error(embeddings: VllmMlxEmbeddings):
    """It is never cut off in silence."""
    with pytest.raises(InvalidRequestError, match="512"):
        embeddings.embed_query("word " * 600)


class TestStandard(EmbeddingsIntegrationTests):
    """LangChain's suite, without an override."""

    folder: ClassVar[str]

    @pytest.fixture(autouse=True)
    def served(self, embeddings: VllmMlxEmbeddings) -> None:
        type(self).folder = embeddings.model

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return VllmMlxEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder}
