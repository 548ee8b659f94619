"""Scores of documents for a query over the wire. Importing this module imports httpcore."""

import math
from collections.abc import Sequence
from typing import Any

from langchain_car_vllm.support.printable import encodable
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.whole_answers import WholeAnswers

_PATH = "/rerank"


class Ranker(WholeAnswers):
    """Scores texts at one endpoint."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return how relevant each text is to the query, in the order of the texts.

        Raises:
            AnswerError: The server refuses or fails, with its own words.
        """
        return _scores(self.post(_PATH, _body(query, texts)), len(texts))

    async def ascore(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return the same without blocking the event loop."""
        return _scores(await self.apost(_PATH, _body(query, texts)), len(texts))


def _body(query: str, texts: Sequence[str]) -> dict[str, Any]:
    documents = [encodable(text) for text in texts]
    return {"query": encodable(query), "documents": documents, "return_documents": False}


def _scores(answer: dict[str, Any], expected: int) -> list[float]:
    try:
        results = answer["results"]
        found = {int(result["index"]): float(result["relevance_score"]) for result in results}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ServerFailedError("the server did not send a list of scores") from error
    if found.keys() != set(range(expected)) or len(results) != expected:
        raise ServerFailedError(f"the server did not send one score for each of {expected} texts")
    if not all(map(math.isfinite, found.values())):
        raise ServerFailedError("the server sent a score that is not a number")
    return [found[index] for index in range(expected)]
