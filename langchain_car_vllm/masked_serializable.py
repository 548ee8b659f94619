"""How a model is written down by LangChain: without the secrets that hide in its settings."""

from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)
from pydantic import ConfigDict

from langchain_car_vllm.environment import CAR_VLLM_MLX_API_KEY
from langchain_car_vllm.secrets_masking import masked_settings


class MaskedSerializable(Serializable):
    """A model that LangChain can write down and load again."""

    # What is only inherited from is never validated by.
    model_config = ConfigDict(defer_build=True)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return whether LangChain can write the model down and load it again."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return what LangChain writes down, without the secrets that hide in settings."""
        found = super().to_json()
        if found["type"] == "constructor":
            found["kwargs"] = masked_settings(found["kwargs"])
        return found

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The fields that are secrets, and the variables they come from."""
        return {"api_key": CAR_VLLM_MLX_API_KEY.name}
