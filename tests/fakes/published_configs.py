"""What published models say of their layers in `config.json`: the fields that tell what a
conversation takes in memory, with the figures that follow from mlx-lm's caches.
"""

_GEMMA_4 = {"head_dim": 256, "global_head_dim": 512}


def _every(nth, layers):
    """Return layer types: each nth is of full attention, the others have a window."""
    return ["full_attention" if i % nth == nth - 1 else "sliding_attention" for i in range(layers)]


def _nested(**text):
    model_type = text["model_type"].removesuffix("_text")
    return {"model_type": model_type, "text_config": text, "vision_config": {}}


_LINEAR = {
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "max_position_embeddings": 262144,
}

CONFIGS = {
    "Qwen3.6-35B-A3B": _nested(
        model_type="qwen3_5_moe_text",
        num_hidden_layers=40,
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=2,
        linear_num_value_heads=32,
        **_LINEAR,
    ),
    "Qwen3.6-27B": _nested(
        model_type="qwen3_5_text",
        num_hidden_layers=64,
        hidden_size=5120,
        num_attention_heads=24,
        num_key_value_heads=4,
        linear_num_value_heads=48,
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 16,
        **_LINEAR,
    ),
    "gemma-4-E2B": _nested(
        model_type="gemma4_text",
        num_hidden_layers=35,
        hidden_size=1536,
        num_attention_heads=8,
        num_key_value_heads=1,
        num_global_key_value_heads=None,
        num_kv_shared_layers=20,
        attention_k_eq_v=False,
        sliding_window=512,
        layer_types=_every(5, 35),
        max_position_embeddings=131072,
        **_GEMMA_4,
    ),
    "gemma-4-E4B": _nested(
        model_type="gemma4_text",
        num_hidden_layers=42,
        hidden_size=2560,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_global_key_value_heads=None,
        num_kv_shared_layers=18,
        attention_k_eq_v=False,
        sliding_window=512,
        layer_types=_every(6, 42),
        max_position_embeddings=131072,
        **_GEMMA_4,
    ),
    "gemma-4-12B": _nested(
        model_type="gemma4_text",
        num_hidden_layers=48,
        hidden_size=3840,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=1,
        num_kv_shared_layers=0,
        attention_k_eq_v=True,
        sliding_window=1024,
        layer_types=_every(6, 48),
        max_position_embeddings=131072,
        **_GEMMA_4,
    ),
    "gemma-4-26B-A4B": _nested(
        model_type="gemma4_text",
        num_hidden_layers=30,
        hidden_size=2816,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=2,
        num_kv_shared_layers=0,
        attention_k_eq_v=True,
        sliding_window=1024,
        layer_types=_every(6, 30),
        max_position_embeddings=131072,
        **_GEMMA_4,
    ),
    "Qwen3-4B": {
        "model_type": "qwen3",
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_position_embeddings": 40960,
    },
    "Qwen3-8B": {
        "model_type": "qwen3",
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 40960,
    },
    "GLM-4.7-Flash": {
        "model_type": "glm4_moe_lite",
        "num_hidden_layers": 47,
        "hidden_size": 2048,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "max_position_embeddings": 202752,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
    },
    "Nemotron-3-Nano-30B-A3B": {
        "model_type": "nemotron_h",
        "num_hidden_layers": 52,
        "hidden_size": 2688,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "max_position_embeddings": 262144,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
    },
    "DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
    },
    # Gemma 3 leaves out what its implementation takes by itself.
    "gemma-3-4b": _nested(
        model_type="gemma3_text", num_hidden_layers=34, hidden_size=2560, sliding_window=1024
    ),
    "gemma-3-12b": _nested(
        model_type="gemma3_text",
        num_hidden_layers=48,
        hidden_size=3840,
        num_attention_heads=16,
        num_key_value_heads=8,
        sliding_window=1024,
    ),
    "InternVL3-8B": {
        "model_type": "internvl_chat",
        "vision_config": {},
        "llm_config": {
            "model_type": "qwen2",
            "num_hidden_layers": 28,
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
        },
    },
    "Qwen3-Omni-30B-A3B": {
        "model_type": "qwen3_omni_moe",
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker",
            "text_config": {
                "model_type": "qwen3_omni_moe_text",
                "num_hidden_layers": 48,
                "hidden_size": 2048,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "max_position_embeddings": 65536,
            },
        },
    },
}

# Bytes of a token, of all windows when they are full, and of what has a fixed size.
FIGURES = {
    "Qwen3.6-35B-A3B": (20_480, 0, 64_389_120),
    "Qwen3.6-27B": (65_536, 0, 153_944_064),
    "gemma-4-E2B": (6_144, 6_291_456, 0),
    "gemma-4-E4B": (16_384, 20_971_520, 0),
    "gemma-4-12B": (16_384, 335_544_320, 0),
    "gemma-4-26B-A4B": (20_480, 209_715_200, 0),
    "Qwen3-4B": (147_456, 0, 0),
    "Qwen3-8B": (147_456, 0, 0),
    "Qwen3-30B-A3B": (98_304, 0, 0),
    "GLM-4.7-Flash": (54_144, 0, 0),
    "gpt-oss-20b": (24_576, 3_145_728, 0),
    "Nemotron-3-Nano-30B-A3B": (6_144, 0, 49_082_368),
    "DeepSeek-V3": (70_272, 0, 0),
    "DeepSeek-V2-Lite": (276_480, 0, 0),
    "gemma-3-4b": (20_480, 121_634_816, 0),
    "gemma-3-12b": (65_536, 335_544_320, 0),
    "InternVL3-8B": (57_344, 0, 0),
    "Qwen3-Omni-30B-A3B": (98_304, 0, 0),
}

# One that ranks, as ms-marco-MiniLM.
CROSS_ENCODER = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "id2label": {"0": "LABEL_0"},
}
