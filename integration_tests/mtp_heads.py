"""Give a tiny qwen3_5 model MTP heads with random weights, in a file of their own.

    python mtp_heads.py MODEL OUT

It runs under the server's own Python. The heads guess at random, so that nearly every draft is
refused: that tests the check of drafts, not their use.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3_5 import DecoderLayer, TextModelArgs


class Heads(nn.Module):
    """One layer, in the names that vllm-mlx 0.6.0 looks for (patches/qwen3_5_mtp.py)."""

    def __init__(self, args: TextModelArgs) -> None:
        super().__init__()
        self.pre_fc_norm_hidden = nn.RMSNorm(args.hidden_size)
        self.pre_fc_norm_embedding = nn.RMSNorm(args.hidden_size)
        self.fc = nn.Linear(2 * args.hidden_size, args.hidden_size, bias=False)
        self.layers = [DecoderLayer(args, layer_idx=args.full_attention_interval - 1)]
        self.norm = nn.RMSNorm(args.hidden_size)


def main() -> None:
    """Copy the model and add the heads."""
    model, out = map(Path, sys.argv[1:])
    shutil.copytree(model, out, dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (out / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    heads = Heads(TextModelArgs.from_dict(config["text_config"]))
    weights = {f"mtp.{name}": value for name, value in tree_flatten(heads.parameters())}
    mx.save_safetensors(str(out / "model-mtp.safetensors"), weights, metadata={"format": "mlx"})


main()
