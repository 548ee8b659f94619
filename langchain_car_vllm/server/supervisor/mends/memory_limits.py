"""How much memory the server wires and keeps: what was set aside for it, whoever asks for more.

mlx-lm, mlx-vlm and vllm-mlx each wire Metal's whole working set, in every process. Wiring under
company and cache eviction is the published trigger of panics of macOS (ml-explore/mlx#3186); not
wiring makes weights that come close to the working set slow. So the decision is taken here, in the
one place that all of them call:

* `CAR_VLLM_MLX_WIRED` is `auto`, `0` or `1`. `auto` wires nothing where the weights take at most
  0.8 of the working set. Else the weights' bytes are wired, once, and no more.
* `CAR_VLLM_LAUNCH_MEMORY` is what was set aside, in bytes; 0 for nothing known.
"""

import os
import sys
from typing import Any

from .mend import Mend, find

_SHARE = 0.8
_LEAST_CACHE = 256 * 2**20


def _limit_memory(module: Any) -> "str | None":
    """Have all limits follow from what was set aside, and wire the weights at most."""
    names = ("set_wired_limit", "set_memory_limit", "set_cache_limit", "device_info")
    for name in names:
        find_builtin(module, name)
    mode = os.environ.get("CAR_VLLM_MLX_WIRED", "auto")
    room = int(os.environ.pop("CAR_VLLM_LAUNCH_MEMORY", "0"))
    if not module.metal.is_available():
        return "this machine has no Metal"
    weights = weights_bytes(sys.argv[2] if len(sys.argv) > 2 else "")  # noqa: PLR2004
    _limit_wiring(module, mode, weights)
    if room:
        _limit_use(module, room, max(room - weights, _LEAST_CACHE))
    return None


def find_builtin(module: Any, name: str) -> Any:
    """Return a function that is written in C++ and shows no signature."""
    return getattr(module, name, None) or find(module, name)


def _limit_wiring(module: Any, mode: str, weights: int) -> None:
    set_limit = module.set_wired_limit
    wired: list[int] = []

    def patched(limit: int) -> int:
        working_set = int(module.device_info()["max_recommended_working_set_size"])
        is_small = weights <= _SHARE * working_set
        if not (wired or mode == "0" or (mode == "auto" and is_small) or not weights):
            wired.append(min(weights, working_set, limit))
            set_limit(wired[0])
        return wired[0] if wired else 0

    module.set_wired_limit = patched


def _limit_use(module: Any, room: int, cache: int) -> None:
    """Set the limits, which the simple engine never does, and let nobody raise them."""
    for name, most in (("set_memory_limit", room), ("set_cache_limit", cache)):
        setattr(module, name, _cap(getattr(module, name), most))
        getattr(module, name)(most)


def _cap(set_limit: Any, most: int) -> Any:
    def capped(limit: int, *args: Any, **kwargs: Any) -> Any:
        return set_limit(min(limit, most), *args, **kwargs)

    return capped


def weights_bytes(model: str) -> int:
    """Return the size of a model's weights on the disk, 0 where they are not found."""
    from .prefix_cache_folder import folder_of

    folder = folder_of(model)
    if not os.path.isdir(folder):
        return 0
    files = [os.path.join(folder, name) for name in os.listdir(folder)]
    return sum(os.stat(file).st_size for file in files if file.endswith(".safetensors"))


MENDS = (
    Mend(
        name="memory-limits",
        module="mlx.core",
        tested="mlx 0.32",
        purpose="wire the weights at most, and keep within the memory that was set aside",
        apply=_limit_memory,
    ),
)
