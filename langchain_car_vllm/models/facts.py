"""What a model's own files say about how to serve it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from langchain_car_vllm.errors import UnservableModelError, UntrustedCodeError
from langchain_car_vllm.models.config import ModelConfig, config_of, text_part
from langchain_car_vllm.models.families import (
    UNKNOWN,
    Family,
    family_facts,
    family_of_type,
    template_thinks,
    template_tool_format,
)
from langchain_car_vllm.models.kv_cache import KvCache, kv_cache_of
from langchain_car_vllm.models.model_files import (
    bounded_integer,
    list_folder,
    load_object,
    read_object,
    read_text,
)
from langchain_car_vllm.models.remote_code import find_code
from langchain_car_vllm.models.weights import INDEX, weight_names

# Ranges that the server's `--default-*` options make sense in.
_UNQUANTISED_BITS, _MOST_BITS = 16, 64
_SAMPLING = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 999_999),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 10.0),
}


class ModelFacts(NamedTuple):
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
        weights_bytes: Size of the weights that the server loads.
        family: The family, None where unknown.
        bits: Of a weight: 16 where they are not quantised, None where unknown.
        kv: What a conversation takes in memory, None where `config.json` does not tell.
        widening: How many times as large the weights are once they are loaded.
    """

    tool_call_parser: str | None
    reasoning_parser: str | None
    multimodal: bool
    context_window: int | None
    sampling: Mapping[str, float] = {}
    preserve_thinking: bool = False
    linear_attention: bool = False
    weights_bytes: int = 0
    family: str | None = None
    bits: int | None = None
    kv: KvCache | None = None
    widening: int = 1


def read_model_facts(directory: Path, name: str, *, trust: bool = False) -> ModelFacts:
    """Return what a complete local copy of a model says about itself.

    Args:
        directory: Holds `config.json`, the weights and the tokenizer.
        name: The model's id; it tells the family before `model_type` does.
        trust: Whether the user trusts code that the model brings.

    Raises:
        UntrustedCodeError: It brings code that nobody trusts.
        UnservableModelError: `config.json` is missing or cannot be read.
    """
    try:
        files = list_folder(directory)
        values = load_object(directory / "config.json")
    except UnservableModelError as error:
        raise UnservableModelError(
            f"`{directory}` has no readable `config.json`: {error.message}",
            hint=error.hint or "download the model again, or name a directory with an MLX model",
        ) from error
    if not trust and (code := find_code(files, lambda file: read_object(directory / file))):
        raise UntrustedCodeError(name, code)
    facts = facts_of_config(values, name, directory.name, read_chat_template(directory))
    weights = _weights_bytes(directory, files, multimodal=facts.multimodal)
    return facts._replace(sampling=_sampling(directory), weights_bytes=weights)


def facts_of_config(
    values: Mapping[str, Any], name: str, folder: str = "", template: str | None = None
) -> ModelFacts:
    """Return what a model's configuration and its chat template say.

    Args:
        values: What `config.json` holds.
        name: The model's id; it tells the family before `model_type` does.
        folder: The name of its folder, which may tell the family, too.
        template: Its chat template, None where it has none or nobody knows.
    """
    config = config_of(values)
    family = _family(name, folder, config)
    return ModelFacts(
        tool_call_parser=_tool_call_parser(family, template),
        reasoning_parser=_reasoning_parser(family, template),
        multimodal=config.multimodal,
        context_window=config.context_window,
        preserve_thinking=template is not None and "preserve_thinking" in template,
        linear_attention=config.linear_attention,
        family=family.name,
        bits=_bits(values),
        kv=kv_cache_of(values),
        widening=_widening(values),
    )


def _weights_bytes(directory: Path, files: dict[str, int | None], *, multimodal: bool) -> int:
    index = read_object(directory / INDEX) if multimodal else None
    names = weight_names(files, multimodal=multimodal, index=index)
    return sum(files[name] or 0 for name in names)


def read_chat_template(directory: Path) -> str | None:
    """Return a model's chat template from wherever it keeps it, None where it has none."""
    if (template := read_text(directory / "chat_template.jinja")) is not None:
        return template
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


def _family(name: str, folder: str, config: ModelConfig) -> Family:
    by_name = family_facts(name)
    if by_name is UNKNOWN:
        by_name = family_facts(folder)
    if by_name is not UNKNOWN:
        return by_name
    return family_of_type(config.model_type) if config.model_type else UNKNOWN


def _tool_call_parser(family: Family, template: str | None) -> str | None:
    if template is None:
        return family.tool_call_parser
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


def _sampling(directory: Path) -> dict[str, float]:
    config = read_object(directory / "generation_config.json") or {}
    return {
        key: config[key]
        for key, (lowest, highest) in _SAMPLING.items()
        if isinstance(config.get(key), int | float)
        and not isinstance(config[key], bool)
        and lowest <= config[key] <= highest
        and (key != "top_k" or config[key] % 1 == 0)
    }


def _widening(config: Mapping[str, Any]) -> int:
    """Return 2 for floats of 8 bits as PyTorch has them: they become 16 (mlx-lm 0.31, mlx-vlm 0.6).

    All but DeepSeek V4's, for which there is an implementation.
    """
    found = config.get("quantization_config") or text_part(config).get("quantization_config")
    if not isinstance(found, dict) or config.get("quantization"):
        return 1
    is_wide = found.get("quant_method") == "fp8" or found.get("format") == "float-quantized"
    return 2 if is_wide and config.get("model_type") != "deepseek_v4" else 1


def _bits(config: Mapping[str, Any]) -> int:
    for name in ("quantization", "quantization_config"):
        found = config.get(name)
        bits = found.get("bits") if isinstance(found, dict) else None
        if bits := bounded_integer(bits, 1, _MOST_BITS):
            return bits
    return _UNQUANTISED_BITS
