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
            found["kwargs"] = masked_settings({**found["kwargs"], **self._refused_variables()})
        return found

    def _refused_variables(self) -> dict[str, None]:
        """Return the settings that were set to nothing although a variable may bring them.

        LangChain leaves them out, and whoever loads the model would get the variable's.
        """
        fields = type(self).model_fields
        return {
            name: None
            for name in self.model_fields_set & fields.keys()
            if getattr(self, name) is None and fields[name].default_factory is not None
        }

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The fields that are secrets, and the variables they come from."""
        return {"api_key": CAR_VLLM_MLX_API_KEY.name}
