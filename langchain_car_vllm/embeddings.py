"""`VllmMlxEmbeddings`: vectors from a supervised server of their own."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Self

from langchain_core.embeddings import Embeddings
from pydantic import model_validator

from langchain_car_vllm.connection import Connection, Replay, aconnect, connect
from langchain_car_vllm.errors import ServerFailedError
from langchain_car_vllm.setting_checks import check_is_text, check_positive, list_of_texts
from langchain_car_vllm.settings import ServerFields
from langchain_car_vllm.support.threads import run_wait

if TYPE_CHECKING:
    from langchain_car_vllm.wire.embed import Embedder


class VllmMlxEmbeddings(ServerFields, Embeddings, defer_build=False):
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

    timeout: float | None = None
    """Seconds a batch may take once the server is ready."""
    batch_size: int = 64
    """Most texts in one request; the server answers nobody else meanwhile."""

    _wire: ClassVar[str] = "langchain_car_vllm.wire.embed"

    @model_validator(mode="after")
    def _check_embedding(self) -> Self:
        check_positive("batch_size", self.batch_size)
        if self.timeout is not None:
            check_positive("timeout", self.timeout)
        return self

    def _patience(self) -> float | None:
        return self.timeout

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

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        listed = list_of_texts(texts)
        for start in range(0, len(listed), self.batch_size):
            yield listed[start : start + self.batch_size]

    def _embed(self, texts: list[str]) -> list[list[float]]:
        replay = Replay()
        while True:
            with connect(self._target(self._spec(kind="embeddings"))) as connection:
                try:
                    return self._embedder(connection).embed(texts)
                except Replay.BROKEN as error:
                    replay.decide(error, connection.explain(), connection)

    async def _aembed(self, texts: list[str]) -> list[list[float]]:
        replay = Replay()
        while True:
            async with aconnect(self._target(self._spec(kind="embeddings"))) as connection:
                try:
                    # Its import would block the loop.
                    embedder = await run_wait(self._embedder, connection)
                    return await embedder.aembed(texts)
                except Replay.BROKEN as error:
                    replay.decide(error, await connection.aexplain(), connection)

    def _embedder(self, connection: Connection) -> "Embedder":
        from langchain_car_vllm.wire.embed import Embedder  # noqa: PLC0415 - imports openai

        return Embedder(connection.endpoint, self._header_items(), self.timeout)


def _of_one_length(batches: Iterable[list[list[float]]]) -> list[list[float]]:
    """Return the vectors of all batches.

    Raises:
        ServerFailedError: Another model has answered in between, as behind a gateway.
    """
    found = [vector for batch in batches for vector in batch]
    if len(set(map(len, found))) > 1:
        raise ServerFailedError("the server sent vectors that are not of one length")
    return found
