"""Models for embeddings and reranking answer to the served model name, as chat models do."""

import sys
from typing import Any

from .mend import find, mend

_FLAG = "--served-model-name"


@mend("served-names", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _answer_to_served_name(module: Any) -> None:
    """Take the served name for the model of `--embedding-model` and `--rerank-model`.

    vllm-mlx 0.6.0 wants what stands on its command line there, such as the path of a snapshot.
    """
    resolve = find(module, "resolve_embedding_model_name", "requested_model", "locked_model")
    load = find(module, "load_reranker_model", "model_name", "lock", "reuse_existing")
    if not hasattr(module, "_rerank_model_locked"):
        find(module, "_rerank_model_locked")

    def resolve_served(requested_model: str, *, locked_model: "str | None" = None) -> Any:
        if locked_model is not None and requested_model == _served_name():
            requested_model = locked_model
        return resolve(requested_model, locked_model=locked_model)

    def load_and_lock(model_name: Any, *, lock: bool = False, reuse_existing: bool = True) -> None:
        load(model_name, lock=lock, reuse_existing=reuse_existing)
        if lock:
            module._rerank_model_locked = _served_name() or model_name

    module.resolve_embedding_model_name = resolve_served
    module.load_reranker_model = load_and_lock


def _served_name() -> "str | None":
    arguments = sys.argv
    return arguments[arguments.index(_FLAG) + 1] if _FLAG in arguments[:-1] else None


MENDS = (_answer_to_served_name,)
