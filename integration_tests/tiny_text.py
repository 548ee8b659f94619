"""Build a tiny text model with random weights whose cache is of another kind.

    python tiny_text.py FAMILY OUT --tokenizer DIR

FAMILY is one of `FAMILIES`: windows, or recurrent layers among others. DIR holds any tokenizer with
a chat template. It runs under the server's own Python.
"""

import argparse
import importlib
import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

_VOCABULARY = 49_152
_SHARED = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "eos_token_id": 2,
}
FAMILIES = {
    "gemma3_text": {
        "num_hidden_layers": 6,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_local_base_freq": 10_000,
        "query_pre_attn_scalar": 16,
        "sliding_window": 128,
        "sliding_window_pattern": 6,
    },
    "gpt_oss": {
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 128,
        "rope_theta": 150_000,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "qwen3_next": {
        "num_hidden_layers": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.25,
        "head_dim": 32,
        "full_attention_interval": 4,
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
    },
    "kimi_linear": {
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "linear_attn_config": {
            "kda_layers": [1, 2, 3],
            "full_attn_layers": [4],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
        "model_max_length": 32_768,
        "num_experts": 0,
        "moe_intermediate_size": 64,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "mla_use_nope": True,
    },
    "granitemoehybrid": {
        "num_hidden_layers": 4,
        "attention_bias": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 0.25,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "shared_intermediate_size": 128,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    },
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for file in given.tokenizer.iterdir():
        if file.suffix != ".safetensors" and file.name not in (
            "config.json",
            "model.safetensors.index.json",
        ):
            shutil.copy(file, given.out / file.name)
    config = {"model_type": given.family, **_SHARED, **FAMILIES[given.family]}
    module = importlib.import_module(f"mlx_lm.models.{given.family}")
    model = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(1)
    weights = {
        name: mx.random.normal(value.shape) * 0.1 if value.ndim > 1 else value
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(given.out / "model.safetensors"), weights)
    (given.out / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
