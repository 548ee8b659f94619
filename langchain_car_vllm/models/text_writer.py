"""Whether a model writes text, or only reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.config import architectures_of
from langchain_car_vllm.models.model_files import read_object

# The server (vllm-mlx 0.6.0) fails to load an encoder. Of others it loads what fits and leaves the
# rest to chance, so that its answers are nonsense.
_READING_HEADS = (
    *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("ForMaskedLM", "ForMultipleChoice", "ForRewardModeling"),
)
_WITHOUT_HEAD = frozenset(
    f"{family}Model"
    for family in (
        *("Llama", "LlamaBidirectional", "Mistral", "Qwen2", "Qwen3"),
        *("Gemma", "Gemma2", "Gemma3Text"),
    )
)
_ENCODERS = frozenset({"electra", "longformer", "mpnet"})
_HINT = (
    "embed with `VllmMlxEmbeddings`, rerank with `VllmMlxReranker`, or choose a model that "
    "`car-vllm recommend` lists"
)


def check_writes_text(config: Mapping[str, Any], name: str) -> None:
    """Refuse a model that only reads, such as an encoder or a classifier.

    Raises:
        UnservableModelError: It is one; says what it is.
    """
    kind = _reading_kind(config)
    if kind is not None:
        raise UnservableModelError(f"`{name}` does not write text: it is a `{kind}`", hint=_HINT)


def only_reads(directory: Path | None) -> bool:
    """Return whether a directory holds a model that writes no text."""
    config = read_object(directory / "config.json") if directory is not None else None
    return config is not None and _reading_kind(config) is not None


def _reading_kind(config: Mapping[str, Any]) -> str | None:
    """Return what a model is that only reads, None for one that may write."""
    if config.get("model_file") is not None:  # code of its own decides, where it is trusted
        return None
    names = architectures_of(config)
    if names and all(name.endswith(_READING_HEADS) or name in _WITHOUT_HEAD for name in names):
        return names[0]
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    is_encoder = "bert" in model_type or model_type in _ENCODERS
    return (names[0] if names else model_type) if is_encoder else None
