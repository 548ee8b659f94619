"""What a conversation takes in memory, by the configs of published models and by hostile ones."""

import pytest
from fakes.published_configs import CONFIGS, FIGURES
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.models.kv_cache import KvCache, kv_cache_of


@pytest.mark.parametrize("name", CONFIGS)
def test_published_models_have_their_figures(name):
    """Layers count by their kind: all tokens, a window of them, or a state of fixed size."""
    kv = kv_cache_of(CONFIGS[name])
    assert kv is not None
    assert (kv.per_token, kv.overhead - kv.fixed, kv.fixed) == FIGURES[name]


def test_a_window_is_full_at_its_size():
    """Below its window a layer costs as any other, above it nothing more."""
    kv = kv_cache_of(CONFIGS["gpt-oss-20b"])
    assert kv.size(64) == 64 * 2 * 24_576
    assert kv.size(128) == 128 * 2 * 24_576
    assert kv.size(1128) - kv.size(128) == 1000 * 24_576


@pytest.mark.parametrize(
    ("config", "kv"),
    [
        ({"num_key_value_heads": [1, 2]}, KvCache(3 * 4 * 2 * 2)),
        ({"num_key_value_heads": [1, 2, 3]}, None),
        ({"head_dim": "64"}, KvCache(2 * 2 * 2 * 4 * 2)),
        ({"num_hidden_layers": None}, None),
        ({"num_hidden_layers": 10**12}, None),
        ({"layer_types": ["mamba", "attention"], "mamba_n_heads": 2}, KvCache(2 * 2 * 4 * 2)),
        ({"sliding_window_pattern": 2, "sliding_window": 8}, KvCache(32, ((32, 8),))),
        ({"sliding_window_pattern": 2, "sliding_window": None}, KvCache(2 * 32)),
        ({"attention_chunk_size": 8, "num_hidden_layers": 4}, KvCache(32, ((96, 8),))),
        ({"full_attn_idxs": [1], "conv_L_cache": 3}, KvCache(32, (), 3 * 8 * 2)),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, KvCache(32)),
        ({"linear_attn_config": {"full_attn_layers": [2]}}, KvCache(32)),
        ({"linear_attn_config": {"full_attn_layers": [[], {}, "2", None, 2]}}, KvCache(32)),
        ({"num_kv_shared_layers": 3}, KvCache(0)),
        ({"model_type": "falcon_h1", "mamba_d_state": 2}, KvCache(64, (), 2 * 8 * 2 * 4)),
        ({"layers_block_type": ["attention", "hybrid"]}, KvCache(64)),
        ({"hybrid_override_pattern": "*-"}, KvCache(32)),
        ({"kv_lora_rank": 6, "qk_rope_head_dim": 2, "index_head_dim": 4}, KvCache(2 * 12 * 2)),
        ({"layer_group_size": 2, "head_dim": 3}, KvCache(24, (), 2 * 9 * 4)),
        ({"hybrid_layer_pattern": [1, 0], "sliding_window_size": 8}, KvCache(32, ((32, 8),))),
        ({"num_key_value_heads": None, "num_attention_groups": 1}, KvCache(32)),
        (
            {"linear_attn_config": {"full_attn_layers": [2], "num_heads": 3, "head_dim": 5}},
            KvCache(32, (), 3 * 5 * 5 * 4),
        ),
    ],
)
def test_other_ways_to_write_layers(config, kv):
    """Each spelling of a hybrid is understood; what makes no sense is unknown, and no crash."""
    base = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    assert kv_cache_of({**base, **config}) == kv


@pytest.mark.parametrize("outer", ["deepseek_v2", "kimi_vl", "mistral4"])
def test_a_compressed_form_that_is_not_what_is_kept(outer):
    """Some implementations expand it first, and keep keys and values of every head."""
    text = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }
    assert kv_cache_of({"model_type": outer, "text_config": text}) == KvCache(1280)
    assert kv_cache_of({"model_type": "kimi_k25", "text_config": text}) == KvCache(320)


@pytest.mark.parametrize(
    ("text", "per_token"),
    [
        ({"model_type": "llama", "max_position_embeddings": 4096}, 32 * 32 * 128 * 2 * 2),
        ({"model_type": "mistral", "num_key_value_heads": 8}, 32 * 8 * 128 * 2 * 2),
        ({"model_type": "mistral", "num_hidden_layers": None}, None),
    ],
)
def test_what_a_language_model_of_llava_leaves_out(text, per_token):
    """It writes what differs from the first model of its type."""
    found = kv_cache_of({"model_type": "llava", "text_config": text})
    assert (found and found.per_token) == per_token


def test_windows_that_an_implementation_does_not_have():
    """Gemma 2 is published with windows, and its whole conversation is kept."""
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
    }
    gemma = {"model_type": "gemma2", **config}
    assert kv_cache_of(gemma) == KvCache(64)
    assert kv_cache_of({"model_type": "paligemma", "text_config": gemma}) == KvCache(64)
    chunked = {**config, "model_type": "llama4_text", "attention_chunk_size": 8}
    assert kv_cache_of(chunked) == KvCache(64)
    assert kv_cache_of({"model_type": "llama4", "text_config": chunked}).windows
    assert kv_cache_of({"model_type": "gemma3_text", **config, "head_dim": 4}).windows


def test_layers_that_are_configured_one_by_one():
    """Nemotron-NAS has layers without attention, and heads in groups of different sizes."""
    attentions = [
        {"n_heads_in_group": 2, "no_op": False},
        {"n_heads_in_group": None, "no_op": True},
        {"n_heads_in_group": 4, "no_op": False},
        None,
    ]
    config = {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": None,
        "block_configs": [{"attention": attention} for attention in attentions],
    }
    assert kv_cache_of(config) == KvCache(3 * 16 * 2 * 2)
    assert kv_cache_of({**config, "block_configs": [None, 7, {}, {"attention": 5}]}) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_FIELDS = sorted(
    {name for config in CONFIGS.values() for name in (config.get("text_config") or config)}
)


@given(st.dictionaries(st.sampled_from([*_FIELDS, "text_config", "block_types"]), _JSON))
def test_no_config_breaks_it(config):
    """Whatever a file says, the answer is a cost that is not negative, or unknown."""
    kv = kv_cache_of(config)
    assert kv is None or (kv.size(0) >= 0 and kv.size(1000) >= kv.size(10))


@given(
    st.builds(
        KvCache,
        st.integers(0, 500_000),
        st.just(()) | st.tuples(st.tuples(st.integers(1, 10_000), st.integers(1, 4096))),
        st.integers(0, 10**8),
    ),
    st.integers(-(10**9), 10**11),
    st.integers(1, 10**6),
)
def test_tokens_are_as_many_as_fit(kv, room, most):
    """One token more would not fit, or the model has no more."""
    tokens = kv.tokens(room, most)
    assert 0 <= tokens <= most
    assert tokens == 0 or kv.size(tokens) <= room
    assert tokens == most or kv.size(tokens + 1) > room
