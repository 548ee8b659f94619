"""`ChatVllmMlx` passes the suites of langchain-tests without an override."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_car_vllm import ChatVllmMlx


# The suite gives a key to every model, and none of them an endpoint that it belongs to.
@pytest.mark.filterwarnings("ignore:.api_key. has no effect")
class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVllmMlx

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "vllm-mlx/qwen3.6-35b-a3b:4bit"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"CAR_VLLM_MLX_API_KEY": "key", "CAR_VLLM_MLX_BASE_URL": "http://127.0.0.1:9/v1"},
            {"model": "m"},
            {"api_key": "key", "base_url": "http://127.0.0.1:9/v1"},
        )


@pytest.mark.usefixtures("server")
class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVllmMlx

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "standard"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "standard"
