"""Failures that servers tell of with a status of success."""

import asyncio
import json

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.wire.errors import (
    InvalidRequestError,
    ModelMissingError,
    PromptTooLongError,
    RateLimitError,
    ServerFailedError,
)


class LmStudio(Dialect):
    """It has a status of success for every address that it does not know."""

    def respond(self, method, path, headers, body):
        response = super().respond(method, path, headers, body)
        if not path.startswith("/v1/") or path.endswith("/rerank"):
            said = f"Unexpected endpoint or method. ({method} {path}). Returning 200 anyway"
            response.status, response.content_type = 200, "application/json"
            response.body = json.dumps({"error": said}).encode()
        return response


def test_an_address_that_lm_studio_does_not_know_is_told():
    """It was a failure of the server's, worth repeating, or no list of scores."""
    with Server(LmStudio("m")) as server:
        root = server.base_url.removesuffix("/v1")
        named = {"model": "m", "base_url": root, "max_retries": 0}
        llm = ChatVllmMlx(**named)
        embeddings = VllmMlxEmbeddings(model="m", base_url=root)
        for call in (
            lambda: llm.invoke("hi"),
            lambda: list(llm.stream("hi")),
            lambda: asyncio.run(llm.ainvoke("hi")),
            lambda: embeddings.embed_query("hi"),
            lambda: asyncio.run(embeddings.aembed_query("hi")),
        ):
            with pytest.raises(InvalidRequestError, match="Unexpected endpoint") as caught:
                call()
            assert caught.value.hint == f"did you mean `{server.base_url}`?"
            assert not caught.value.is_retryable
        with pytest.raises(ServerFailedError, match="did you mean"):
            ChatVllmMlx(**named, validate_model_on_init=True)
        with pytest.raises(InvalidRequestError, match="Unexpected endpoint"):
            VllmMlxReranker(model="m", base_url=server.base_url).rerank(["a"], "hi")


@pytest.mark.parametrize(
    ("said", "cls"),
    [
        ({"error": {"message": "slow down", "code": 429}}, RateLimitError),
        ({"error": "prompt is too long"}, PromptTooLongError),
        ({"detail": "boom"}, ServerFailedError),
        ({"object": "error", "message": "no such model", "code": 404}, ModelMissingError),
    ],
)
def test_a_failure_with_a_status_of_success_is_one(said, cls):
    """Of vectors and of scores, too: what the server says is what the error says."""

    class Gateway(Dialect):
        def respond(self, method, path, headers, body):
            response = super().respond(method, path, headers, body)
            if method == "POST":
                response.status, response.body = 200, json.dumps(said).encode()
            return response

    with Server(Gateway("m")) as server:
        named = {"model": "m", "base_url": server.base_url}
        for call in (
            lambda: VllmMlxEmbeddings(**named).embed_query("hi"),
            lambda: VllmMlxReranker(**named).rerank(["a"], "hi"),
            lambda: ChatVllmMlx(**named, max_retries=0).invoke("hi"),
        ):
            with pytest.raises(cls):
                call()
