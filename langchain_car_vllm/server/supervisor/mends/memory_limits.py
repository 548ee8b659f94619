"""How much memory the server wires and keeps: what was set aside for it, whoever asks for more.

mlx-lm, mlx-vlm and vllm-mlx each wire Metal's whole working set, in every process. Wiring under
company and cache eviction is the published trigger of panics of macOS (ml-explore/mlx#3186); not
wiring makes weights that come close to the working set slow. So the decision is taken here, in the
one place that all of them call:

* `CAR_VLLM_MLX_WIRED` is `auto`, `0` or `1`. `auto` wires nothing where the weights take at most
  0.8 of the working set. Else the weights' bytes are wired, once, and no more. Beside other
  servers that wire, whose bytes are `CAR_VLLM_LAUNCH_WIRED_BY_OTHERS`, at most 0.8 in all are.
* `CAR_VLLM_LAUNCH_MEMORY` is what was set aside, in bytes; 0 for nothing known. Where a running
  server is to go on with less, or may have more, the file `memory-room` beside its log says so.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from .mend import find, mend

_SHARE = 0.8
_ROOM = "memory-room"
_LOOK_SECONDS = 1.0
_LEAST_CACHE = 256 * 2**20


@mend("memory-limits", "mlx.core", "mlx 0.32")
def _limit_memory(module: Any) -> "str | None":
    """Have all limits follow from what was set aside, and wire the weights at most."""
    names = ("set_wired_limit", "set_memory_limit", "set_cache_limit", "device_info")
    for name in names:
        find_builtin(module, name)
    mode = os.environ.get("CAR_VLLM_MLX_WIRED", "auto")
    room = int(os.environ.pop("CAR_VLLM_LAUNCH_MEMORY", "0"))
    by_others = int(os.environ.pop("CAR_VLLM_LAUNCH_WIRED_BY_OTHERS", "0"))
    if not module.metal.is_available():
        return "this machine has no Metal"
    weights = weights_bytes(sys.argv[2] if len(sys.argv) > 2 else "")  # noqa: PLR2004
    _limit_wiring(module, mode, weights, by_others)
    if room:
        limits = Limits(module, weights)
        limits.keep_to(room)
        path = os.path.abspath(_ROOM)
        with suppress(FileNotFoundError):  # of the start before this one
            os.unlink(path)
        threading.Thread(target=limits.follow, args=(path,), daemon=True).start()
    return None


def find_builtin(module: Any, name: str) -> Any:
    """Return a function that is written in C++ and shows no signature."""
    return getattr(module, name, None) or find(module, name)


def _limit_wiring(module: Any, mode: str, weights: int, by_others: int = 0) -> None:
    set_limit = module.set_wired_limit
    wired: list[int] = []

    def patched(limit: int) -> int:
        working_set = int(module.device_info()["max_recommended_working_set_size"])
        is_small = weights <= _SHARE * working_set
        most = int(_SHARE * working_set) - by_others if by_others else working_set
        is_unwanted = mode == "0" or (mode == "auto" and is_small) or not weights
        if not (wired or is_unwanted or weights > most):
            wired.append(min(weights, limit))
            set_limit(wired[0])
        return wired[0] if wired else 0

    module.set_wired_limit = patched


class Limits:
    """Sets the limits, which the simple engine never does, and lets nobody raise them."""

    def __init__(self, module: Any, weights: int) -> None:
        self._weights = weights
        self._set = {
            name: getattr(module, name) for name in ("set_memory_limit", "set_cache_limit")
        }
        self._most = dict.fromkeys(self._set, 0)
        for name in self._set:
            setattr(module, name, self._cap(name))

    def keep_to(self, room: int) -> None:
        """Have the process keep to so many bytes; MLX frees what it holds beyond that."""
        self._most["set_memory_limit"] = room
        self._most["set_cache_limit"] = max(room - self._weights, _LEAST_CACHE)
        for name, set_limit in self._set.items():
            set_limit(self._most[name])

    def follow(self, path: str) -> None:
        """Keep to what a file says, for as long as the process lives."""
        seen = None
        while True:
            time.sleep(_LOOK_SECONDS)
            with suppress(OSError, ValueError):
                stamp = os.stat(path).st_mtime_ns
                if stamp != seen:
                    with open(path, encoding="ascii") as file:
                        self.keep_to(int(file.read()))
                    seen = stamp

    def _cap(self, name: str) -> Any:
        def capped(limit: int, *args: Any, **kwargs: Any) -> Any:
            return self._set[name](min(limit, self._most[name]), *args, **kwargs)

        return capped


def weights_bytes(model: str) -> int:
    """Return the size of a model's weights on the disk, 0 where they are not found.

    Neither the second copy that some publishers add counts, nor what macOS puts beside each file.
    """
    from .prefix_cache_folder import folder_of

    folder = folder_of(model)
    if not os.path.isdir(folder):
        return 0
    return sum(
        os.stat(os.path.join(folder, name)).st_size
        for name in os.listdir(folder)
        if name.endswith(".safetensors")
        and not name.endswith("consolidated.safetensors")
        and not name.startswith(".")
    )


MENDS = (_limit_memory,)
