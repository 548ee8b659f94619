"""`VllmMlxReranker`: documents in the order of their relevance, from a server of their own."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, Unpack

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import model_validator

from langchain_car_vllm.batch_fields import BatchFields
from langchain_car_vllm.connection import Connection
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server.spec import Kind
from langchain_car_vllm.setting_checks import check_is_text, check_positive
from langchain_car_vllm.wire.request.parameter_values import Count

if TYPE_CHECKING:
    from langchain_car_vllm.arguments import ModelName, RerankerArguments
    from langchain_car_vllm.wire.rerank import Ranker

SCORE = "relevance_score"


class Ranked(NamedTuple):
    """A text's place among others.

    Attributes:
        place: Where it stood.
        relevance_score: How relevant it is to the query, from 0 to 1.
    """

    place: int
    relevance_score: float


class VllmMlxReranker(BatchFields, BaseDocumentCompressor, defer_build=False):
    """Reranks documents with a cross-encoder that `vllm-mlx` serves.

    It installs, starts and supervises the server by itself, under the same supervision as
    `ChatVllmMlx`. The server is one of its own, which never loads chat weights.

    Example:
        ```python
        from langchain_car_vllm import VllmMlxReranker
        from langchain_core.documents import Document

        reranker = VllmMlxReranker(model="cross-encoder/ms-marco-MiniLM-L6-v2", top_n=3)
        documents = [Document("Mars has two moons."), Document("Bread is made of flour.")]
        best = reranker.compress_documents(documents, "Which planet has moons?")
        best[0].metadata["relevance_score"]
        ```

    Raises:
        ConfigurationError: A setting cannot work; the message says what to write instead.
        UnknownModelError: The model id names nothing that can be served.
    """

    if TYPE_CHECKING:

        def __init__(
            self, model: ModelName = ..., /, **given: Unpack[RerankerArguments]
        ) -> None: ...

    top_n: Count | None = 3
    """How many of the best documents are kept; None for all."""

    _kind: ClassVar[Kind] = "reranker"
    _wire: ClassVar[str] = "langchain_car_vllm.wire.rerank"

    @model_validator(mode="after")
    def _check_reranking(self) -> Self:
        if self.top_n is not None:
            check_positive("top_n", self.top_n)
        return self

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> list[Document]:
        """Return the documents that are most relevant to a query, best first.

        Args:
            documents: The documents; they stay as they are.
            query: What they are to answer.
            callbacks: Told of nothing.

        Returns:
            Copies with `relevance_score` in their metadata.

        Raises:
            InvalidRequestError: A document is too long for the model, or the query is empty.
            ConfigurationError: They are not documents.
        """
        listed = _list_of_documents(documents)
        return _copies(listed, self.rerank([d.page_content for d in listed], query))

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> list[Document]:
        """Return the same without blocking the event loop."""
        listed = _list_of_documents(documents)
        return _copies(listed, await self.arerank([d.page_content for d in listed], query))

    def rerank(self, texts: Sequence[str], query: str) -> list[Ranked]:
        """Return the places of the texts that are most relevant to a query, best first.

        Raises:
            InvalidRequestError: A text is too long for the model, or the query is empty.
            ConfigurationError: They are not texts.
        """
        check_is_text("the query", query)
        scores = [score for batch in self._batches(texts) for score in self._score(query, batch)]
        return self._best(scores)

    async def arerank(self, texts: Sequence[str], query: str) -> list[Ranked]:
        """Return the same without blocking the event loop."""
        check_is_text("the query", query)
        batches = self._batches(texts)
        scores = [score for batch in batches for score in await self._ascore(query, batch)]
        return self._best(scores)

    def _best(self, scores: list[float]) -> list[Ranked]:
        ranked = [Ranked(place, score) for place, score in enumerate(scores)]
        return sorted(ranked, key=lambda found: -found.relevance_score)[: self.top_n]

    def _score(self, query: str, texts: list[str]) -> list[float]:
        return self._ask(lambda ranker: ranker.score(query, texts))

    async def _ascore(self, query: str, texts: list[str]) -> list[float]:
        return await self._aask(lambda ranker: ranker.ascore(query, texts))

    def _client(self, connection: Connection) -> "Ranker":
        from langchain_car_vllm.wire.rerank import Ranker  # noqa: PLC0415 - imports httpcore

        return Ranker(connection.endpoint, self._header_items(), self.timeout)


def _list_of_documents(documents: object) -> list[Document]:
    if isinstance(documents, Document):
        raise ConfigurationError(
            "a list of documents is expected, not one document",
            hint="put it in a list: `[document]`",
        )
    found: list[Any] = list(documents) if isinstance(documents, Iterable) else [documents]
    for document in found:
        if not isinstance(document, Document):
            raise ConfigurationError(
                f"a list of documents is expected, not of `{type(document).__name__}`",
                hint="`rerank` takes strings; `Document(text)` makes a document of one",
            )
    return found


def _copies(documents: Sequence[Document], ranked: list[Ranked]) -> list[Document]:
    return [
        documents[found.place].model_copy(
            update={"metadata": {**documents[found.place].metadata, SCORE: found.relevance_score}}
        )
        for found in ranked
    ]
