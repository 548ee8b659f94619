"""Embeddings over the wire. Importing this module imports openai."""

import json
from collections.abc import Sequence

import httpx2

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.transport.clients import LoopClients, address_of, sync_clients
from langchain_car_vllm.wire.transport.error_mapping import map_encoding_errors, map_errors
from langchain_car_vllm.wire.transport.send import ChatRequest, aopen_stream, open_stream
from langchain_car_vllm.wire.transport.timeouts import Clock

_MOST_BYTES = 256 << 20


class Embedder:
    """Embeds texts at one endpoint.

    Args:
        endpoint: Who answers.
        headers: Sent with every request.
        timeout: Seconds a request may take, None for no limit.
    """

    def __init__(
        self, endpoint: Endpoint, headers: tuple[tuple[str, str], ...], timeout: float | None
    ) -> None:
        self._endpoint = endpoint
        self._address = address_of(endpoint, headers)
        self._timeout = timeout

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text, in order.

        Raises:
            AnswerError: The server refuses or fails, with its own words.
        """
        clients = sync_clients(self._address, self._endpoint.is_ours)
        clock = Clock(self._endpoint, self._timeout, total=True)
        answer = bytearray()
        with map_errors(self._endpoint, self._timeout), clients.borrow() as http:
            request = self._request(texts, clock)
            with open_stream(http, request, clock.deadline) as parts:
                for part in parts:
                    clock.check(0)
                    _add(answer, part)
        return _vectors(answer, len(texts))

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the same without blocking the event loop."""
        clients = await LoopClients(self._address, self._endpoint.is_ours).current()
        clock = Clock(self._endpoint, self._timeout, total=True)
        answer = bytearray()
        with map_errors(self._endpoint, self._timeout):
            async with clients.borrow() as http:
                request = self._request(texts, clock)
                async with aopen_stream(http, request, clock.deadline) as parts:
                    async for part in parts:
                        clock.check(0)
                        _add(answer, part)
        return _vectors(answer, len(texts))

    def _request(self, texts: Sequence[str], clock: Clock) -> httpx2.Request:
        # The server takes texts only (token arrays are a 422) and always sends floats, so neither
        # the SDK's base64 nor OpenAIEmbeddings' tokens would do (vllm-mlx 0.6.0).
        body = {"model": self._endpoint.served_model, "input": list(texts)}
        with map_encoding_errors():
            return ChatRequest(self._address, "/embeddings").build(body, clock.transport)


def _add(answer: bytearray, part: bytes) -> None:
    answer += part
    if len(answer) > _MOST_BYTES:
        raise ServerFailedError(f"the answer is longer than {_MOST_BYTES >> 20} MB")


def _vectors(answer: bytearray, expected: int) -> list[list[float]]:
    try:
        entries = sorted(json.loads(answer)["data"], key=lambda entry: entry["index"])
        vectors = [[float(x) for x in entry["embedding"]] for entry in entries]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ServerFailedError("the server did not send a list of vectors") from error
    if len(vectors) != expected:
        raise ServerFailedError(f"the server sent {len(vectors)} vectors for {expected} texts")
    return vectors
