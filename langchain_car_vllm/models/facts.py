"""What a model's own files say about how to serve it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.families import (
    UNKNOWN,
    UNSTREAMED_PARSERS,
    Family,
    family_facts,
    family_of_type,
    template_thinks,
    template_tool_format,
)
from langchain_car_vllm.models.json_files import read_object
from langchain_car_vllm.models.kv_cache import KvCache, kv_cache_of

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

# Ranges that the server's `--default-*` options make sense in.
_SAMPLING = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 10.0),
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """How a model wants to be served.

    Attributes:
        tool_call_parser: Value for `--tool-call-parser`, None where the model has no format of its
            own that the server knows.
        reasoning_parser: Value for `--reasoning-parser`, None where the model does not think.
        multimodal: Whether the server takes its multimodal route for it.
        context_window: Tokens that prompt and answer share, None where `config.json` is silent.
        sampling: The model's own sampling defaults, which the server does not read by itself; keys
            as in requests.
        preserve_thinking: Whether the chat template can keep earlier thoughts in the prompt.
        linear_attention: Whether some layers keep one state for the whole of what they have read,
            which cannot be cut back to an earlier token.
        streams_tool_calls: False where the server's parser loses tool calls in a stream.
        weights_bytes: Size of the `*.safetensors` files.
        family: The family, None where unknown.
        kv: What a conversation takes in memory, None where `config.json` does not tell.
    """

    tool_call_parser: str | None
    reasoning_parser: str | None
    multimodal: bool
    context_window: int | None
    sampling: dict[str, float] = field(default_factory=dict)
    preserve_thinking: bool = False
    linear_attention: bool = False
    streams_tool_calls: bool = True
    weights_bytes: int = 0
    family: str | None = None
    kv: KvCache | None = None


def read_model_facts(directory: Path, name: str) -> ModelFacts:
    """Return what a complete local copy of a model says about itself.

    Args:
        directory: Holds `config.json`, the weights and the tokenizer.
        name: The model's id; it tells the family before `model_type` does.

    Raises:
        ConfigurationError: `config.json` is missing or no JSON object.
    """
    config = read_object(directory / "config.json")
    if config is None:
        raise ConfigurationError(
            f"`{directory}` holds no readable `config.json`",
            hint="download the model again, or name a directory that holds an MLX model",
        )
    template = read_chat_template(directory)
    family = _family(name, directory, config)
    parser = _tool_call_parser(family, template)
    return ModelFacts(
        tool_call_parser=parser,
        reasoning_parser=_reasoning_parser(family, template),
        multimodal=is_multimodal(config),
        context_window=_context_window(config),
        sampling=_sampling(directory),
        preserve_thinking=template is not None and "preserve_thinking" in template,
        linear_attention=_has_linear_attention(config),
        streams_tool_calls=parser not in UNSTREAMED_PARSERS,
        weights_bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        family=family.name,
        kv=kv_cache_of(config),
    )


def is_multimodal(config: dict[str, Any]) -> bool:
    """Return whether the server will serve a model of this `config.json` as multimodal."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any(key in config for key in _MULTIMODAL_KEYS) or any(
        mark in name.lower()
        for name in names
        if isinstance(name, str)
        for mark in _MULTIMODAL_ARCHITECTURES
    )


def read_chat_template(directory: Path) -> str | None:
    """Return a model's chat template from wherever it keeps it, None where it has none."""
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = (read_object(directory / file) or {}).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            return _best_template(found)
    return None


def _best_template(named: list[Any]) -> str | None:
    templates = {
        entry["name"]: entry["template"]
        for entry in named
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }
    return templates.get("tool_use") or templates.get("default")


def _family(name: str, directory: Path, config: dict[str, Any]) -> Family:
    by_name = family_facts(name)
    if by_name is UNKNOWN:
        by_name = family_facts(directory.name)
    if by_name is not UNKNOWN:
        return by_name
    model_type = config.get("model_type")
    return family_of_type(model_type) if isinstance(model_type, str) else UNKNOWN


def _tool_call_parser(family: Family, template: str | None) -> str | None:
    if template is None:
        return None if family is UNKNOWN else family.tool_call_parser
    if "tools" not in template:
        return None
    if family.needed_mark not in template:
        return family.otherwise
    return family.tool_call_parser or template_tool_format(template)


def _reasoning_parser(family: Family, template: str | None) -> str | None:
    thinks = family.thinks
    if family.template_decides and template is not None:
        thinks = template_thinks(template, family.reasoning_parser)
    return family.reasoning_parser if thinks else None


def _context_window(config: dict[str, Any]) -> int | None:
    for part in (config, _text_config(config)):
        found = part.get("max_position_embeddings")
        if isinstance(found, int) and found > 0:
            return found
    return None


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("text_config")
    return found if isinstance(found, dict) else config


def _sampling(directory: Path) -> dict[str, float]:
    config = read_object(directory / "generation_config.json") or {}
    return {
        key: config[key]
        for key, (lowest, highest) in _SAMPLING.items()
        if isinstance(config.get(key), int | float)
        and not isinstance(config[key], bool)
        and lowest <= config[key] <= highest
    }


def _has_linear_attention(config: dict[str, Any]) -> bool:
    text = _text_config(config)
    kinds = text.get("layer_types")
    named = isinstance(kinds, list) and "linear_attention" in kinds
    return named or "linear_num_value_heads" in text
