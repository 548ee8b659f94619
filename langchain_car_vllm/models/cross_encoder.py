"""Whether a model is a cross-encoder that the server can rerank with."""

from collections.abc import Mapping
from typing import Any

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.config import architectures_of

# What `vllm_mlx/rerank_forward.py` computes (vllm-mlx 0.6.0); it fails at the first request, or
# gives wrong scores, with anything else.
_TYPES = ("bert", "roberta", "xlm-roberta", "xlm_roberta")
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "relu", "silu", "swish")
_EXAMPLE = "name one such as `cross-encoder/ms-marco-MiniLM-L6-v2` or `BAAI/bge-reranker-v2-m3`"


def check_cross_encoder(config: Mapping[str, Any], name: str) -> None:
    """Refuse a model that the server cannot rerank with.

    Raises:
        UnservableModelError: It is another kind of model; says which.
    """
    reason = _obstacle(config)
    if reason is not None:
        raise UnservableModelError(f"`{name}` cannot rerank: {reason}", hint=_EXAMPLE)


def _obstacle(config: Mapping[str, Any]) -> str | None:
    names = architectures_of(config)
    if not any(n.endswith("ForSequenceClassification") for n in names):
        kind = f"a `{names[0]}`" if names else "a model without a classifier"
        return f"it is {kind}, not a cross-encoder"
    model_type = config.get("model_type")
    if model_type not in _TYPES:
        return (
            f"the server supports cross-encoders of the types BERT and RoBERTa, not `{model_type}`"
        )
    labels = config.get("id2label")
    if isinstance(labels, dict) and len(labels) > 1:
        return f"it distinguishes {len(labels)} classes, but a cross-encoder gives one score"
    if config.get("quantization") or config.get("quantization_config"):
        return "its weights are quantised, which the server does not support for cross-encoders"
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        return f"the server does not know its activation `{activation}`"
    return None
