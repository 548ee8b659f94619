"""`VllmMlxEmbeddings` passes the suites of langchain-tests without an override."""

from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_car_vllm import VllmMlxEmbeddings


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return VllmMlxEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "mlx-community/all-MiniLM-L6-v2-4bit"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"CAR_VLLM_MLX_API_KEY": "key", "CAR_VLLM_MLX_BASE_URL": "http://127.0.0.1:9/v1"},
            {"model": "m"},
            {"api_key": "key", "base_url": "http://127.0.0.1:9/v1"},
        )


@pytest.mark.usefixtures("server")
class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return VllmMlxEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "standard"}
