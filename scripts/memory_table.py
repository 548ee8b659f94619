"""Writes the table of what fits on which Mac into `docs/memory.md`, from the plan itself."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from langchain_car_vllm.models.kv_cache import kv_cache_of
from langchain_car_vllm.server.memory import memory_for
from langchain_car_vllm.server.wiring import wired_bytes

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
MACS = (8, 16, 24, 32, 48, 64, 128)
_GIB = 2**30
_GB = 1e9
_SMALL_MAC, _SMALL_SHARE, _LARGE_SHARE = 32, 2 / 3, 3 / 4
_MARKED = re.compile(r"(<!-- fits -->\n).*?(<!-- end -->)", re.DOTALL)


class Row(NamedTuple):
    """A model of the table: the bytes of its weights, and the numbers of its `config.json`."""

    name: str
    weights: float
    window: int
    config: dict[str, Any]


def _gemma(**text: Any) -> dict[str, Any]:
    sizes = {"head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": None}
    return {"text_config": {**sizes, **text}}


ROWS = (
    Row("Qwen3-4B, 4 bits", 2.3, 40_960, {
        "num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128,
    }),
    Row("Qwen3-8B, 4 bits", 4.6, 40_960, {
        "num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128,
    }),
    Row("gemma-4-12b-it, 4 bits", 6.74, 131_072, _gemma(
        num_hidden_layers=48, num_key_value_heads=8, num_global_key_value_heads=1,
        attention_k_eq_v=True, sliding_window=1024, sliding_window_pattern=6,
    )),
    Row("gpt-oss-20b, 4 bits", 12.1, 131_072, {
        "num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    }),
    Row("gemma-4-26b-a4b-it, 4 bits", 15.6, 131_072, _gemma(
        num_hidden_layers=30, num_key_value_heads=8, num_global_key_value_heads=2,
        attention_k_eq_v=True, sliding_window=1024, sliding_window_pattern=6,
    )),
    Row("GLM-4.7-Flash, 4 bits", 16.9, 202_752, {
        "num_hidden_layers": 47, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    }),
    Row("Qwen3-30B-A3B, 4 bits", 17.2, 40_960, {
        "num_hidden_layers": 48, "num_key_value_heads": 4, "head_dim": 128,
    }),
    Row("Qwen3.6-35B-A3B, 4 bits", 20.4, 262_144, {"text_config": {
        "num_hidden_layers": 40, "full_attention_interval": 4, "num_key_value_heads": 2,
        "head_dim": 256, "linear_num_value_heads": 32, "linear_num_key_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    }}),
    Row("gemma-4-26b-a4b-it, 16 bits", 51.6, 131_072, _gemma(
        num_hidden_layers=30, num_key_value_heads=8, num_global_key_value_heads=2,
        attention_k_eq_v=True, sliding_window=1024, sliding_window_pattern=6,
    )),
)  # fmt: skip


def budget(gigabytes: int) -> int:
    """Return what models may take of a Mac before Metal has been asked."""
    share = _SMALL_SHARE if gigabytes <= _SMALL_MAC else _LARGE_SHARE
    return int(gigabytes * _GIB * share)


def cell(row: Row, gigabytes: int) -> str:
    """Return the context and the company that fit, or that nothing does."""
    memory = memory_for(
        int(row.weights * _GB),
        kv_cache_of(row.config),
        row.window,
        batched=True,
        chunked="text_config" in row.config,
        budget=budget(gigabytes),
        # The same share stands for Metal's figure.
        alone=bool(wired_bytes(int(row.weights * _GB), "auto", budget(gigabytes))),
    )
    if memory.needed > budget(gigabytes):
        return "-"
    return f"{(memory.context or 0) // 1024}k, {(memory.room or 0) // 1024}k / {memory.sequences}"


def table() -> str:
    """Return the table: models below each other, Macs beside each other."""
    header = ["model", "weights", *(f"{gigabytes} GB" for gigabytes in MACS)]
    lines = [header, ["---"] * len(header)]
    lines += [
        [row.name, f"{row.weights:g} GB", *(cell(row, gigabytes) for gigabytes in MACS)]
        for row in ROWS
    ]
    lines.insert(2, ["*models may take*", "", *(f"{budget(g) / _GB:.1f} GB" for g in MACS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled() -> str:
    """Return the page with its table as the plan says."""
    text = PAGE.read_text(encoding="utf-8")
    return _MARKED.sub(lambda match: f"{match[1]}{table()}{match[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(filled(), encoding="utf-8")
