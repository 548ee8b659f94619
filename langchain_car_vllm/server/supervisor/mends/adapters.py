"""A LoRA adapter on top of the served model, which vllm-mlx has no argument for."""

import os
import sys
from typing import Any

from .mend import find, mend

_VARIABLE = "CAR_VLLM_LAUNCH_ADAPTER"


@mend("adapter", "mlx_lm.utils", "mlx-lm 0.31.3")
def _load_on_top(module: Any) -> None:
    """Have mlx-lm put the adapter on the model that is served, and on no other, such as a draft.

    Whether this was done is told by a file beside the record of the mends: a server without it
    would answer as if there were no adapter.
    """
    load_model = find(module, "load_model", "model_path", "lazy", "strict")
    load_adapters = find(module, "load_adapters", "model", "adapter_path")

    def load_with_adapter(model_path: Any, *args: Any, **kwargs: Any) -> Any:
        found = load_model(model_path, *args, **kwargs)
        adapter = os.environ.get(_VARIABLE)
        if adapter and _is_served(str(model_path)):
            model = load_adapters(found[0], adapter)
            model.eval()
            found = (model, *found[1:])
            with open("adapter.loaded", "w", encoding="utf-8") as file:
                file.write(adapter)
        return found

    module.load_model = load_with_adapter


def _is_served(path: str) -> bool:
    """Return whether a folder is that of the model on the command line."""
    named = sys.argv[2] if len(sys.argv) > 2 else ""  # noqa: PLR2004 - `vllm-mlx serve MODEL`
    if os.path.isdir(named):
        return os.path.realpath(named) == os.path.realpath(path)
    return f"models--{named.replace('/', '--')}".lower() in path.lower().split(os.sep)


MENDS = (_load_on_top,)
