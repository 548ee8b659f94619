"""LangChain's whole integration suite on the real server: two models, two engines.

Qwen2.5-Coder-1.5B runs all of it. SmolLM2-135M runs all but the one test that waits for a model to
call a tool of its own accord, which it cannot.
"""

from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


class Standard(ChatModelIntegrationTests):
    """The suite as it is; a class below names the model and the engine."""

    engine: ClassVar[str]
    folder: str
    environment: dict[str, str]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVllmMlx

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.folder,
            "engine": self.engine,
            "temperature": 0,
            "server_args": ["--max-tokens", "256"],
            "server_env": self.environment,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.folder


class OnQwen(Standard):
    @pytest.fixture(autouse=True)
    def served(self, qwen: str, fast_cpu: dict[str, str]) -> None:
        type(self).folder, type(self).environment = qwen, fast_cpu


class OnSmolLM2(Standard):
    penalty: float | None

    @pytest.fixture(autouse=True)
    def served(
        self, smollm2: str, fast_cpu: dict[str, str], request: pytest.FixtureRequest
    ) -> None:
        type(self).folder, type(self).environment = smollm2, fast_cpu
        type(self).penalty = None if "test_tool_calling" in request.node.name else 1.28

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Asked for its likeliest token, so small a model repeats itself inside a string forever.
        # With a penalty it no longer repeats the number that a tool is to be called with.
        return {**super().chat_model_params, "repetition_penalty": self.penalty}


class TestQwenBatched(OnQwen):
    engine = "batched"


class TestQwenSimple(OnQwen):
    engine = "simple"


class TestSmolLM2Batched(OnSmolLM2):
    engine = "batched"


class TestSmolLM2Simple(OnSmolLM2):
    engine = "simple"
