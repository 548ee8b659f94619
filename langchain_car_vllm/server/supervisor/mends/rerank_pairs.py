"""Pairs of a query and a document are scored as the cross-encoder was trained, and never cut."""

import glob
import importlib
import json
import os
from typing import Any

from .mend import find, mend

# Above every vocabulary, so that one number can hold a token and its segment.
_SEGMENT = 1 << 24
_BAD_REQUEST = 400
_SHOWN = 40


@mend("rerank-folders", "vllm_mlx.rerank", "vllm-mlx 0.6.0")
def _load_folders(module: Any) -> None:
    """Load the weights of a folder, too, and of every type of float.

    vllm-mlx 0.6.0 asks the Hub for any name, and reads weights by way of NumPy, which has no
    bfloat16.
    """
    engine = find(module, "RerankEngine")
    find(engine, "_load_mlx_model", "model_name")
    build = find(module, "_build_classifier_model", "model_type", "config", "weights", "num_labels")

    def load(model_name: str) -> Any:
        folder = model_name
        if not os.path.isdir(folder):
            folder = importlib.import_module("huggingface_hub").snapshot_download(model_name)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        weights: dict[str, Any] = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.safetensors"))):
            weights.update(module.mx.load(path))
        if not weights:
            raise FileNotFoundError(f"there are no safetensors files in {folder}")
        model = build(config.get("model_type", ""), config, weights, config.get("num_labels", 1))
        module.mx.eval(model.parameters())
        return model

    engine._load_mlx_model = staticmethod(load)


@mend("rerank-segments", "vllm_mlx.rerank", "vllm-mlx 0.6.0", needed_for="reranker models")
def _tell_segments_apart(module: Any) -> None:
    """Give the model the segment of each token, as in its training.

    vllm-mlx 0.6.0 throws the tokenizer's `token_type_ids` away, so a BERT reads the document as a
    part of the query. They travel in the numbers of the tokens until the embedding is looked up.
    """
    adapter = find(module, "SigmoidAdapter")
    tokenize = find(adapter, "tokenize_pair", "tokenizer", "query", "document", "max_length")
    forward_module = importlib.import_module("vllm_mlx.rerank_forward")
    forward = find(
        forward_module, "classifier_forward", "input_ids", "attention_mask", "weights", "config"
    )
    prefix_of = find(forward_module, "_detect_prefix", "weights")
    mx = module.mx

    def tokenize_with_segments(
        self: Any, tokenizer: Any, query: str, document: str, max_length: int
    ) -> "dict[str, Any]":
        found = tokenize(self, tokenizer, query, document, max_length)
        ids, segments = found["input_ids"], found.get("token_type_ids")
        if segments is not None:
            ids = ids + segments * _SEGMENT
        return {"input_ids": ids, "attention_mask": found["attention_mask"]}

    def forward_with_segments(
        input_ids: Any, attention_mask: Any, weights: "dict[str, Any]", config: "dict[str, Any]"
    ) -> Any:
        ids, segments = input_ids % _SEGMENT, input_ids // _SEGMENT
        start = f"{prefix_of(weights)}.embeddings."
        kinds = weights[start + "token_type_embeddings.weight"]
        if kinds.shape[0] < 2:  # noqa: PLR2004 - RoBERTa knows one segment
            return forward(ids, attention_mask, weights, config)
        # One row for each token of the batch: its word and its segment, less the first segment,
        # which the server adds to all of them.
        words = weights[start + "word_embeddings.weight"][ids] + kinds[segments] - kinds[0]
        rows = mx.arange(ids.size).reshape(ids.shape)
        table = {start + "word_embeddings.weight": words.reshape(ids.size, -1)}
        return forward(rows, attention_mask, {**weights, **table}, config)

    adapter.tokenize_pair = tokenize_with_segments
    forward_module.classifier_forward = forward_with_segments  # type: ignore[attr-defined]


@mend("rerank-length", "vllm_mlx.rerank", "vllm-mlx 0.6.0", needed_for="reranker models")
def _refuse_long_pairs(module: Any) -> None:
    """Answer 400 where a pair has more tokens than the model reads, instead of cutting it off."""
    engine = find(module, "RerankEngine")
    score = find(engine, "score_pairs", "query", "documents")
    find(engine, "_ensure_loaded")
    longest = find(module, "resolve_max_length", "config", "tokenizer")

    def score_whole(self: Any, query: str, documents: "list[str]") -> Any:
        self._ensure_loaded()
        config = getattr(self._model, "config", None) or {}
        most = longest(config, self._tokenizer)
        positions = config.get("max_position_embeddings")
        if isinstance(positions, int) and "roberta" in str(config.get("model_type")):
            # The first positions of RoBERTa's table are for padding.
            most = min(most, positions - int(config.get("pad_token_id", 1)) - 1)
        for number, document in enumerate(documents):
            pair = self._tokenizer(query, document, truncation=False, verbose=False)
            count = len(pair["input_ids"])
            if count > most:
                raise importlib.import_module("fastapi").HTTPException(
                    status_code=_BAD_REQUEST,
                    detail=f"document {number} ({document[:_SHOWN]!r}...) is too long: with the "
                    f"query it has {count} tokens, and the model reads {most}",
                )
        return score(self, query, documents)

    engine.score_pairs = score_whole


MENDS = (
    _load_folders,
    _tell_segments_apart,
    _refuse_long_pairs,
)
