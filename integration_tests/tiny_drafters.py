"""Give a tiny model something with random weights that drafts tokens for it.

    python tiny_drafters.py heads MODEL OUT      # OUT is the qwen3_5 MODEL with MTP heads beside it
    python tiny_drafters.py assistant MODEL OUT  # OUT is a draft model for the gemma4 MODEL

It runs under the server's own Python. What guesses at random is refused nearly always: that tests
the check of drafts, not their use.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten


class Heads(nn.Module):
    """One layer, in the names that vllm-mlx 0.6.0 looks for (patches/qwen3_5_mtp.py)."""

    def __init__(self, config: dict) -> None:
        from mlx_lm.models.qwen3_5 import DecoderLayer, TextModelArgs

        super().__init__()
        args = TextModelArgs.from_dict(config["text_config"])
        self.pre_fc_norm_hidden = nn.RMSNorm(args.hidden_size)
        self.pre_fc_norm_embedding = nn.RMSNorm(args.hidden_size)
        self.fc = nn.Linear(2 * args.hidden_size, args.hidden_size, bias=False)
        self.layers = [DecoderLayer(args, layer_idx=args.full_attention_interval - 1)]
        self.norm = nn.RMSNorm(args.hidden_size)


def add_heads(model: Path, out: Path, config: dict) -> None:
    """Copy the model and put heads beside its weights."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (out / "config.json").write_text(json.dumps(config))
    save(Heads(config), out / "model-mtp.safetensors", "mtp.")


def build_assistant(model: Path, out: Path, config: dict) -> None:
    """Build the draft model that mlx-vlm knows for the family."""
    from mlx_vlm.speculative.drafters.gemma4_assistant.config import Gemma4AssistantConfig
    from mlx_vlm.speculative.drafters.gemma4_assistant.gemma4_assistant import (
        Gemma4AssistantDraftModel,
    )

    layers = ["sliding_attention", "full_attention"]
    text = config["text_config"] | {
        "num_hidden_layers": len(layers),
        "num_kv_shared_layers": len(layers),
        "sliding_window_pattern": len(layers),
        "layer_types": layers,
    }
    drafter = {
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": text["hidden_size"],
        "text_config": text,
        "torch_dtype": "float32",
    }
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(drafter))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, out)
    built = Gemma4AssistantDraftModel(Gemma4AssistantConfig.from_dict(drafter))
    save(built, out / "model.safetensors")


def save(module: nn.Module, file: Path, prefix: str = "") -> None:
    """Write the weights, as wide as those of the model."""
    weights = {
        f"{prefix}{name}": value.astype(mx.float32)
        for name, value in tree_flatten(module.parameters())
    }
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})


def main() -> None:
    """Build what was asked for."""
    what, *places = sys.argv[1:]
    model, out = map(Path, places)
    mx.random.seed(0)
    build = {"heads": add_heads, "assistant": build_assistant}[what]
    build(model, out, json.loads((model / "config.json").read_text()))


main()
