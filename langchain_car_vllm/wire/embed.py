"""Embeddings over the wire. Importing this module imports openai."""

from collections.abc import Sequence
from typing import Any

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.transport.clients import Address, LoopClients, sync_clients
from langchain_car_vllm.wire.transport.error_mapping import map_encoding_errors, map_errors
from langchain_car_vllm.wire.transport.timeouts import Clock


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
        self._address = Address(endpoint.base_url, endpoint.api_key, headers)
        self._timeout = timeout

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text, in order.

        Raises:
            AnswerError: The server refuses or fails, with its own words.
        """
        clients = sync_clients(self._address, self._endpoint.is_ours)
        with map_errors(self._endpoint, self._timeout), map_encoding_errors():
            return _vectors(clients.sdk.post("/embeddings", **self._request(texts)), len(texts))

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the same without blocking the event loop."""
        clients = await LoopClients(self._address, self._endpoint.is_ours).current()
        with map_errors(self._endpoint, self._timeout), map_encoding_errors():
            return _vectors(
                await clients.sdk.post("/embeddings", **self._request(texts)), len(texts)
            )

    def _request(self, texts: Sequence[str]) -> dict[str, Any]:
        # The server takes texts only (token arrays are a 422) and always sends floats, so neither
        # the SDK's base64 nor OpenAIEmbeddings' tokens would do (vllm-mlx 0.6.0).
        clock = Clock(self._endpoint, self._timeout, total=True)
        body = {"model": self._endpoint.served_model, "input": list(texts)}
        return {"cast_to": object, "body": body, "options": {"timeout": clock.transport}}


def _vectors(answer: Any, expected: int) -> list[list[float]]:
    try:
        entries = sorted(answer["data"], key=lambda entry: entry["index"])
        vectors = [[float(x) for x in entry["embedding"]] for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFailedError("the server sent something that is no list of vectors") from error
    if len(vectors) != expected:
        raise ServerFailedError(f"the server sent {len(vectors)} vectors for {expected} texts")
    return vectors
