"""`VllmMlxEmbeddings`: vectors from a supervised server of their own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Unpack

from langchain_core.embeddings import Embeddings

from langchain_car_vllm.batch_fields import BatchFields
from langchain_car_vllm.connection import Connection
from langchain_car_vllm.errors import ServerFailedError
from langchain_car_vllm.server.spec import Kind
from langchain_car_vllm.setting_checks import check_is_text

if TYPE_CHECKING:
    from langchain_car_vllm.arguments import BatchArguments, ModelName
    from langchain_car_vllm.wire.embed import Embedder


class VllmMlxEmbeddings(BatchFields, Embeddings, defer_build=False):
    """Embeddings that install, start and supervise `vllm-mlx` by themselves.

    They have a server of their own, which never loads chat weights, under the same supervision as
    `ChatVllmMlx`.

    Example:
        ```python
        from langchain_car_vllm import VllmMlxEmbeddings

        embeddings = VllmMlxEmbeddings(model="mlx-community/all-MiniLM-L6-v2-4bit")
        vector = embeddings.embed_query("Which moon is the largest?")
        ```

    Raises:
        ConfigurationError: A setting cannot work; the message says what to write instead.
        UnknownModelError: The model id names nothing that can be served.
    """

    if TYPE_CHECKING:

        def __init__(self, model: ModelName = ..., /, **given: Unpack[BatchArguments]) -> None: ...

    _kind: ClassVar[Kind] = "embeddings"
    _wire: ClassVar[str] = "langchain_car_vllm.wire.embed"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector for each text.

        Raises:
            InvalidRequestError: A text is too long for the model, or empty input.
            ConfigurationError: They are not texts.
        """
        return _of_one_length(self._embed(batch) for batch in self._batches(texts))

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text."""
        check_is_text("a query", text)
        return self._embed([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector for each text, without blocking the event loop."""
        return _of_one_length([await self._aembed(batch) for batch in self._batches(texts)])

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of a text, without blocking the event loop."""
        check_is_text("a query", text)
        return (await self._aembed([text]))[0]

    def _embed(self, texts: list[str]) -> list[list[float]]:
        return self._ask(lambda embedder: embedder.embed(texts))

    async def _aembed(self, texts: list[str]) -> list[list[float]]:
        return await self._aask(lambda embedder: embedder.aembed(texts))

    def _client(self, connection: Connection) -> "Embedder":
        from langchain_car_vllm.wire.embed import Embedder  # noqa: PLC0415 - imports httpcore

        return Embedder(connection.endpoint, self._header_items(), self.timeout)


def _of_one_length(batches: Iterable[list[list[float]]]) -> list[list[float]]:
    """Return the vectors of all batches.

    Raises:
        ServerFailedError: Another model has answered in between, as behind a gateway.
    """
    found = [vector for batch in batches for vector in batch]
    if len(set(map(len, found))) > 1:
        raise ServerFailedError("the server sent vectors of different lengths")
    return found
