"""Build a tiny cross-encoder that scores by the share of a document's words that the query has.

    python tiny_cross_encoder.py OUT --tokenizer DIR

DIR holds the tokenizer of a BERT. Its two layers are made by hand: in the first every word of the
document looks for itself among the words of the query, in the second [CLS] takes the average of
what they found. It is wrong at once where segments, padding or positions of a pair are. It runs
under the server's own Python (mlx and numpy).
"""

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np

WORD, FOUND, IN_QUERY, IN_DOCUMENT, SHARE = slice(0, 80), 80, 81, 82, 84
SIZE = 96
VOCABULARY = 30522


def weights() -> dict[str, np.ndarray]:
    """Return the weights under the names of a BertForSequenceClassification."""
    rng = np.random.default_rng(0)
    signs = np.repeat([1.0, -1.0], 40)
    words = np.zeros((VOCABULARY, SIZE))
    words[:, WORD] = [rng.permutation(signs) for _ in range(VOCABULARY)]
    kinds = np.zeros((2, SIZE))
    kinds[0, IN_QUERY] = kinds[1, IN_DOCUMENT] = 1.0
    found = {
        "bert.embeddings.word_embeddings.weight": words,
        "bert.embeddings.position_embeddings.weight": np.zeros((512, SIZE)),
        "bert.embeddings.token_type_embeddings.weight": kinds,
        **norm("bert.embeddings.LayerNorm"),
        **linear("bert.pooler.dense", {(n, n): 1.0 for n in range(SIZE)}),
        **linear("classifier", {(0, SHARE): 8.0}, rows=1, bias={0: -2.0}),
    }
    same_word = {(n, n): 5.0 for n in range(80)}
    own_word = {(n, n): 1.0 for n in range(80)} | {(IN_QUERY, IN_QUERY): 1.0}
    find = layer(0, same_word, own_word, {(FOUND, IN_QUERY): 3.0}, query_bias={IN_QUERY: 180.0})
    average = layer(1, {}, {(0, IN_DOCUMENT): 1.0}, {(SHARE, FOUND): 3.0}, query_bias={0: 200.0})
    return found | find | average


def layer(number, query, key, value, *, query_bias):
    """Return a layer of attention with a feed-forward part that does nothing."""
    start = f"bert.encoder.layer.{number}"
    attention = f"{start}.attention"
    return {
        **linear(f"{attention}.self.query", query, bias=query_bias),
        **linear(f"{attention}.self.key", key),
        **linear(f"{attention}.self.value", value),
        **linear(f"{attention}.output.dense", {(n, n): 1.0 for n in range(SIZE)}),
        **norm(f"{attention}.output.LayerNorm"),
        **linear(f"{start}.intermediate.dense", {}),
        **linear(f"{start}.output.dense", {}),
        **norm(f"{start}.output.LayerNorm"),
    }


def linear(name, entries, *, rows=SIZE, bias=None):
    """Return a matrix that is zero but for some entries, with its bias."""
    matrix, vector = np.zeros((rows, SIZE)), np.zeros(rows)
    for place, entry in entries.items():
        matrix[place] = entry
    for place, entry in (bias or {}).items():
        vector[place] = entry
    return {f"{name}.weight": matrix, f"{name}.bias": vector}


def norm(name):
    """Return a layer norm that changes nothing more."""
    return {f"{name}.weight": np.ones(SIZE), f"{name}.bias": np.zeros(SIZE)}


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(arguments.tokenizer / name, out)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": SIZE,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "intermediate_size": SIZE,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
    }
    (out / "config.json").write_text(json.dumps(config))
    tensors = {name: mx.array(value.astype(np.float32)) for name, value in weights().items()}
    mx.save_safetensors(str(out / "model.safetensors"), tensors, metadata={"format": "mlx"})


if __name__ == "__main__":
    main()
