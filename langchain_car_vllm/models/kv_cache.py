"""What a conversation takes in memory beside the weights, from a model's `config.json`.

As mlx-lm 0.31 and mlx-vlm 0.6 lay their caches out: layers with full attention keep every token,
those with a sliding window the last ones, and linear ones a state of fixed size. Keys and values of
live requests are held at 16 bits; `--kv-cache-quantization` only concerns prompts that are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from langchain_car_vllm.models.config import text_part
from langchain_car_vllm.models.model_files import bounded_integer

_KV_BYTES = 2
_STATE_BYTES = 4
_LARGEST = 1_000_000
_CHUNKED_EVERY = 4

_Kind = Literal["full", "sliding", "linear", "both", "none"]
_KINDS: dict[str, _Kind] = {
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "local_attention": "sliding",
    "linear_attention": "linear",
    "mamba": "linear",
    "recurrent": "linear",
    "conv": "linear",
    "moe": "none",
    "mlp": "none",
    "hybrid": "both",
}
# Nemotron-H writes its layers as text.
_LETTERS: dict[str, _Kind] = {"M": "linear", "*": "full", "-": "none", "E": "none"}
# What mlx-lm and mlx-vlm take where a published `config.json` leaves it out.
_GEMMA_3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
}
# LLaVA names the type of its language model, and what differs from the first of that type.
_SEVEN_BILLION = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
_UNWRITTEN = dict.fromkeys(("gemma3", "gemma3_text"), _GEMMA_3)
_UNWRITTEN_INSIDE = dict.fromkeys(("llama", "mistral"), _SEVEN_BILLION)
# They have a state and keys and values in every layer.
_TWOFOLD_TYPES = frozenset({"falcon_h1"})
# They keep every token in layers that are published with a window; the one by itself alone.
_WINDOWLESS_TYPES, _WINDOWLESS_ALONE = frozenset({"gemma2"}), "llama4_text"
# They keep the keys and values that a compressed form stands for, not that.
_EXPANDING_TYPES = frozenset(
    {
        *("deepseek_v2", "deepseek_vl_v2", "deepseekocr", "deepseekocr_2", "unlimited_ocr"),
        *("kimi_vl", "minicpm3", "mistral4", "youtu_llm"),
    }
)


class KvCache(NamedTuple):
    """The cost of one conversation, in bytes.

    Attributes:
        per_token: Of every token, in the layers that keep them all.
        windows: Of every token, and how many tokens are kept, in layers with a window.
        fixed: Whatever the length.
    """

    per_token: int
    windows: tuple[tuple[int, int], ...] = ()
    fixed: int = 0

    @property
    def overhead(self) -> int:
        """What a long conversation takes beside `per_token`."""
        return self.fixed + sum(cost * window for cost, window in self.windows)

    def size(self, tokens: int) -> int:
        """Return what a conversation of so many tokens takes."""
        windows = sum(cost * min(tokens, window) for cost, window in self.windows)
        return self.fixed + self.per_token * tokens + windows

    def tokens(self, room: int, most: int) -> int:
        """Return how many tokens, at most `most`, one conversation has room for in some bytes."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.size(middle) <= room:
                low = middle
            else:
                high = middle - 1
        return low


def kv_cache_of(config: Mapping[str, Any]) -> KvCache | None:
    """Return what a conversation takes, None where `config.json` does not tell.

    Args:
        config: The whole of it; the part about the text counts where there is one.
    """
    text = text_part(config)
    types = {str(part.get("model_type")) for part in (config, text)}
    unwritten = _UNWRITTEN if text is config else {**_UNWRITTEN, **_UNWRITTEN_INSIDE}
    text = {**unwritten.get(str(text.get("model_type")), {}), **text}
    if types & _WINDOWLESS_TYPES or config.get("model_type") == _WINDOWLESS_ALONE:
        text = {**text, "sliding_window": None, "attention_chunk_size": None}
    if types & _EXPANDING_TYPES and _number(text, "kv_lora_rank"):
        text = _expanded(text)
    kinds = _layer_kinds(text)
    if not kinds:
        return None
    kept = kinds[: max(0, len(kinds) - (_number(text, "num_kv_shared_layers") or 0))]
    full = _each(text, kept, "full", _full_bytes(text))
    sliding = _each(text, kept, "sliding", _sliding_bytes(text))
    if full is None or sliding is None:
        return None
    window = _window(text)
    if sliding and window is None:
        full, sliding = full + sliding, 0
    states = sum(kind in ("linear", "both") for kind in kept)
    return KvCache(
        full, ((sliding, window),) if sliding and window else (), states * _state_bytes(text)
    )


def _expanded(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with the keys and values that a compressed form stands for."""
    sizes = [_number(text, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    return {
        **text,
        "kv_lora_rank": None,
        "num_key_value_heads": text.get("num_attention_heads"),
        "head_dim": sum(size for size in sizes if size),
    }


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of some fields that holds a sensible number."""
    numbers = (bounded_integer(config.get(name), 1, _LARGEST) for name in names)
    return next(filter(None, numbers), None)


def _layer_kinds(text: Mapping[str, Any]) -> list[_Kind]:
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or 0
    return _named_kinds(text) or _counted_kinds(text, layers)


def _counted_kinds(text: Mapping[str, Any], layers: int) -> list[_Kind]:
    if interval := _number(text, "full_attention_interval"):
        return ["full" if (i + 1) % interval == 0 else "linear" for i in range(layers)]
    if group := _number(text, "layer_group_size"):
        whole = layers // group * group
        return ["full" if (i + 1) % group == 0 or i >= whole else "linear" for i in range(layers)]
    if period := _number(text, "attn_layer_period"):
        offset = _number(text, "attn_layer_offset") or 0
        return ["full" if i % period == offset else "linear" for i in range(layers)]
    if _number(text, "attention_chunk_size"):
        return ["full" if (i + 1) % _CHUNKED_EVERY == 0 else "sliding" for i in range(layers)]
    if _window(text) and (every := _window_pattern(text)):
        return ["full" if i % every == every - 1 else "sliding" for i in range(layers)]
    return ["both" if str(text.get("model_type")) in _TWOFOLD_TYPES else "full"] * layers


def _named_kinds(text: Mapping[str, Any]) -> list[_Kind]:
    for name in ("layer_types", "layers_block_type", "block_types"):
        named = text.get(name)
        if isinstance(named, list) and named:
            return [_KINDS.get(kind, "full") if isinstance(kind, str) else "full" for kind in named]
    letters = text.get("hybrid_override_pattern")
    if isinstance(letters, str) and letters:
        return [_LETTERS.get(letter, "full") for letter in letters]
    marks = text.get("hybrid_layer_pattern")
    if isinstance(marks, list) and marks:
        return ["sliding" if mark == 1 else "full" for mark in marks]
    linear = text.get("linear_attn_config")
    layers = _number(text, "num_hidden_layers") or 0
    if isinstance(linear, dict) and isinstance(linear.get("full_attn_layers"), list):
        full = _indexes(linear["full_attn_layers"])
        return ["full" if i + 1 in full else "linear" for i in range(layers)]
    if isinstance(text.get("full_attn_idxs"), list):
        indexes = _indexes(text["full_attn_idxs"])
        return ["full" if i in indexes else "linear" for i in range(layers)]
    return []


def _indexes(listed: list[Any]) -> frozenset[int]:
    return frozenset(index for index in listed if isinstance(index, int))


def _window(text: Mapping[str, Any]) -> int | None:
    return _number(text, "sliding_window", "sliding_window_size", "attention_chunk_size")


def _window_pattern(text: Mapping[str, Any]) -> int | None:
    pattern = text.get("sliding_window_pattern", text.get("_sliding_window_pattern"))
    if isinstance(pattern, str):
        return len(pattern) or None
    return bounded_integer(pattern, 1, _LARGEST)


def _each(
    text: Mapping[str, Any], kinds: Sequence[_Kind], wanted: _Kind, cost: int | list[int] | None
) -> int | None:
    """Return what all layers of a kind take for a token, None where that is unknown."""
    wants = (wanted, "both") if wanted == "full" else (wanted,)
    layers = [i for i, kind in enumerate(kinds) if kind in wants]
    if not layers:
        return 0
    if isinstance(cost, list):
        counted = _number(text, "num_hidden_layers") == len(cost) == len(kinds)
        return sum(cost[i] for i in layers) if counted else None
    return None if cost is None else cost * len(layers)


def _full_bytes(text: Mapping[str, Any]) -> int | list[int] | None:
    if rank := _number(text, "kv_lora_rank"):
        # The compressed form is kept, and with sparse attention an index besides.
        rope = _number(text, "qk_rope_head_dim") or 0
        return (rank + rope + (_number(text, "index_head_dim") or 0)) * _KV_BYTES
    heads: int | list[int] | None = _key_heads(text)
    if text.get("attention_k_eq_v") is True:
        heads = _number(text, "num_global_key_value_heads") or heads
    return _pair_bytes(text, heads, _number(text, "global_head_dim") or _head_size(text))


def _sliding_bytes(text: Mapping[str, Any]) -> int | list[int] | None:
    heads = _number(text, "swa_num_key_value_heads") or _key_heads(text)
    return _pair_bytes(text, heads, _number(text, "swa_head_dim") or _head_size(text))


def _pair_bytes(
    text: Mapping[str, Any], heads: int | list[int] | None, key_size: int | None
) -> int | list[int] | None:
    if heads is None or key_size is None:
        return None
    pair = (key_size + (_number(text, "v_head_dim") or key_size)) * _KV_BYTES
    return [count * pair for count in heads] if isinstance(heads, list) else heads * pair


def _key_heads(text: Mapping[str, Any]) -> int | list[int] | None:
    listed = text.get("num_key_value_heads") or _block_heads(text)
    if isinstance(listed, list):
        counts = [bounded_integer(count, 1, _LARGEST) or 0 for count in listed]
        return counts if any(counts) else None
    names = ("num_key_value_heads", "num_kv_heads", "num_attention_groups")
    return _number(text, *names, "num_attention_heads", "n_head")


def _block_heads(text: Mapping[str, Any]) -> list[int] | None:
    """Return the heads of each layer where each is configured by itself, as Nemotron-NAS does."""
    blocks, heads = text.get("block_configs"), _number(text, "num_attention_heads")
    if not isinstance(blocks, list) or heads is None:
        return None
    attentions = [block.get("attention") if isinstance(block, dict) else None for block in blocks]
    groups = [
        _number(attention, "n_heads_in_group") if isinstance(attention, dict) else None
        for attention in attentions
    ]
    return [heads // group if group else 0 for group in groups]


def _head_size(text: Mapping[str, Any]) -> int | None:
    if size := _number(text, "head_dim"):
        return size
    hidden = _number(text, "hidden_size", "n_embd")
    heads = _number(text, "num_attention_heads", "n_head")
    return hidden // heads if hidden and heads else None


def _state_bytes(text: Mapping[str, Any]) -> int:
    """Return what a linear layer keeps: the end of its convolution and its state."""
    if heads := _number(text, "linear_num_value_heads"):
        keys = (_number(text, "linear_num_key_heads") or heads) * (
            _number(text, "linear_key_head_dim") or 0
        )
        values = heads * (_number(text, "linear_value_head_dim") or 0)
        kernel = _number(text, "linear_conv_kernel_dim") or 1
        state = values * (_number(text, "linear_key_head_dim") or 0)
        return (kernel - 1) * (2 * keys + values) * _KV_BYTES + state * _STATE_BYTES
    if mamba_heads := _number(text, "mamba_num_heads", "mamba_n_heads"):
        inner = mamba_heads * (_number(text, "mamba_head_dim", "mamba_d_head") or 0)
        size = _number(text, "ssm_state_size", "mamba_d_state") or 0
        groups = _number(text, "n_groups", "mamba_n_groups") or 1
        kernel = _number(text, "conv_kernel", "mamba_d_conv") or 1
        return (kernel - 1) * (inner + 2 * groups * size) * _KV_BYTES + inner * size * _STATE_BYTES
    delta = text.get("linear_attn_config")
    if isinstance(delta, dict):
        size = _number(delta, "head_dim") or 0
        kernel = _number(delta, "short_conv_kernel_size") or 1
        inner = (_number(delta, "num_heads") or 0) * size
        return 3 * (kernel - 1) * inner * _KV_BYTES + inner * size * _STATE_BYTES
    if _number(text, "layer_group_size"):
        size = _head_size(text) or 0
        return (_number(text, "num_attention_heads") or 0) * size * size * _STATE_BYTES
    if length := _number(text, "conv_L_cache"):
        return length * (_number(text, "hidden_size") or 0) * _KV_BYTES
    expanded = (_number(text, "hidden_size") or 0) * (_number(text, "mamba_expand") or 1)
    return expanded * (_number(text, "mamba_d_state") or 0) * _STATE_BYTES
