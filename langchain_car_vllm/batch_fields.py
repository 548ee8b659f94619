"""What embeddings and rerankers have in common: texts, sent in batches to a server of their own."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, ClassVar, Self, TypeVar

from pydantic import model_validator

from langchain_car_vllm.connection import Connection, Replay, Target, aconnect, connect
from langchain_car_vllm.server.spec import Kind
from langchain_car_vllm.setting_checks import check_positive, list_of_texts
from langchain_car_vllm.settings import ServerFields
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.request.parameter_values import Count, Number

T = TypeVar("T")


class BatchFields(ServerFields):
    """A model that answers a batch of texts as a whole."""

    timeout: Number | None = None
    """Seconds a batch may take once the server is ready."""
    batch_size: Count = 64
    """Maximum number of texts in one request; the server answers nobody else meanwhile."""

    _kind: ClassVar[Kind]

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        check_positive("batch_size", self.batch_size)
        if self.timeout is not None:
            check_positive("timeout", self.timeout)
        return self

    def _patience(self) -> float | None:
        return self.timeout

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        listed = list_of_texts(texts)
        for start in range(0, len(listed), self.batch_size):
            yield listed[start : start + self.batch_size]

    def _client(self, connection: Connection) -> Any:
        """Return what talks to the server; its import takes long."""
        raise NotImplementedError

    def _imported_client(self, connection: Connection) -> Any:
        import_whole(self._wire)
        return self._client(connection)

    def _own_target(self) -> Target:
        return self._target(self._spec(kind=self._kind))

    def _ask(self, ask: Callable[[Any], T]) -> T:
        """Return what a client answers; after a crash another one is asked."""
        replay = Replay()
        while True:
            with connect(self._own_target()) as connection:
                try:
                    return ask(self._imported_client(connection))
                except Replay.BROKEN as error:
                    replay.decide(error, connection.explain(), connection)

    async def _aask(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Return the same without blocking the event loop."""
        replay = Replay()
        while True:
            async with aconnect(self._own_target()) as connection:
                try:
                    return await ask(await run_wait(self._imported_client, connection))
                except Replay.BROKEN as error:
                    replay.decide(error, await connection.aexplain(), connection)
