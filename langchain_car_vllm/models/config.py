"""What `config.json` says, as a typed record whose numbers are in ranges that a model can have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from langchain_car_vllm.models.model_files import bounded_integer

# The server's own rule for its multimodal route (vllm-mlx 0.6.0, `vllm_mlx/api/utils.py`).
_MULTIMODAL_KEYS = (
    "vision_config",
    "audio_config",
    "vision_tower",
    "mm_vision_tower",
    "image_token_id",
    "image_token_index",
    "audio_token_id",
    "audio_token_index",
)
_MULTIMODAL_ARCHITECTURES = (
    "vlforcondition",
    "vlforcausal",
    "visionforcondition",
    "visionforcausal",
    "multimodalitycausallm",
    "llava",
    "idefics",
    "paligemma",
    "pixtral",
    "molmo",
    "phi3v",
    "phi4v",
    "cogvlm",
    "internvl",
    "deepseekvl",
    "mllama",
    "gemma3forconditional",
    "gemma4forconditional",
)
_TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
# Of models that are published without it.
_UNWRITTEN_WINDOWS = {"gemma3": 131_072, "gemma3_text": 131_072}
_MOST_LAYERS = 10_000
_MOST_TOKENS = 1_000_000_000


class ModelConfig(NamedTuple):
    """What a model's `config.json` says.

    Attributes:
        model_type: Which implementation serves it, None where it does not say.
        multimodal: Whether the server takes its multimodal route for it.
        context_window: Tokens that prompt and answer share, None where it does not say.
        linear_attention: Whether some layers keep one state for the whole of what they have read.
    """

    model_type: str | None
    multimodal: bool = False
    context_window: int | None = None
    linear_attention: bool = False


def config_of(values: Mapping[str, Any]) -> ModelConfig:
    """Return what a JSON object says as a model's configuration, without what makes no sense."""
    text = text_part(values)
    model_type = values.get("model_type")
    windows = (part.get("max_position_embeddings") for part in (values, text))
    known = (bounded_integer(window, 1, _MOST_TOKENS) for window in windows)
    unwritten = _UNWRITTEN_WINDOWS.get(str(text.get("model_type")))
    return ModelConfig(
        model_type=model_type if isinstance(model_type, str) and model_type else None,
        multimodal=is_multimodal(values),
        context_window=next(filter(None, known), unwritten),
        linear_attention="linear_attention" in _kinds(text) or "linear_num_value_heads" in text,
    )


def architectures_of(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that a `config.json` is for."""
    found = values.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def is_multimodal(values: Mapping[str, Any]) -> bool:
    """Return whether the server will serve a model of this `config.json` as multimodal."""
    return any(key in values for key in _MULTIMODAL_KEYS) or any(
        mark in name.lower()
        for name in architectures_of(values)
        for mark in _MULTIMODAL_ARCHITECTURES
    )


def text_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the innermost part of a configuration that is about the text; the whole by default."""
    while True:
        parts = (values.get(name) for name in _TEXT_PARTS)
        inner = next((part for part in parts if isinstance(part, dict) and part), None)
        if inner is None:
            return values
        values = inner


def _kinds(text: Mapping[str, Any]) -> list[str]:
    found = text.get("layer_types")
    if not isinstance(found, list) or len(found) > _MOST_LAYERS:
        return []
    return [kind for kind in found if isinstance(kind, str)]
