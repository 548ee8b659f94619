"""Embeddings over the wire. Importing this module imports httpcore."""

import math
from collections.abc import Sequence
from typing import Any

from langchain_car_vllm.support.printable import encodable
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.whole_answers import WholeAnswers

_PATH = "/embeddings"


class Embedder(WholeAnswers):
    """Embeds texts at one endpoint."""

    # The server takes texts only (token arrays are a 422) and always sends floats, so neither the
    # SDK's base64 nor OpenAIEmbeddings' tokens would do (vllm-mlx 0.6.0).
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text, in order.

        Raises:
            AnswerError: The server refuses or fails, with its own words.
        """
        return _vectors(self.post(_PATH, _body(texts)), len(texts))

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the same without blocking the event loop."""
        return _vectors(await self.apost(_PATH, _body(texts)), len(texts))


def _body(texts: Sequence[str]) -> dict[str, Any]:
    return {"input": [encodable(text) for text in texts]}


def _vectors(answer: dict[str, Any], expected: int) -> list[list[float]]:
    try:
        entries = answer["data"]
        found = {int(entry["index"]): list(map(float, entry["embedding"])) for entry in entries}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ServerFailedError("the server did not send a list of vectors") from error
    if found.keys() != set(range(expected)) or len(entries) != expected:
        raise ServerFailedError(
            f"the server sent {len(entries)} vectors for {expected} texts, not one for each"
        )
    if len(set(map(len, found.values()))) > 1 or not all(found.values()):
        raise ServerFailedError("the server sent vectors that are empty or of different lengths")
    if not all(math.isfinite(value) for vector in found.values() for value in vector):
        raise ServerFailedError("the server sent vectors with a value that is not a number")
    return [found[index] for index in range(expected)]
