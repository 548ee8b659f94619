"""What the server keeps of pictures that were prepared for a model, and how much of it."""

import inspect
from typing import Any

from .mend import UnknownCodeError, find, mend

_MOST_BYTES = 128 * 2**20


@mend("prepared-pictures", "vllm_mlx.vision_embedding_cache", "vllm-mlx 0.6.0")
def _keep_few_pictures(module: Any) -> None:
    """Bound what is kept by its bytes: vllm-mlx 0.6.0 keeps the pictures of the last 100 prompts.

    A screenshot takes 50 MB, and each turn of an agent is another prompt, which all pictures are
    kept for once more: a long conversation took more than the Mac has, beside what was set aside.
    What is kept serves the very same prompt alone. It is not what the request has, either: that is
    emptied once the model has read it, and the same prompt would be read with less the next time.
    """
    cache = find(module, "VisionEmbeddingCache")
    store = find(cache, "set_pixel_cache", "images", "prompt", "extra_kwargs")
    if not isinstance(getattr(cache(), "_pixel_cache", None), dict):
        raise UnknownCodeError("the cache of pictures keeps them elsewhere")

    signature = inspect.signature(store)

    def stored(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        store(**{**given, "extra_kwargs": dict(given.get("extra_kwargs") or {})})
        kept = self._pixel_cache
        size = sum(_bytes(vars(entry)) for entry in kept.values())
        for key in list(kept):
            if size <= _MOST_BYTES:
                break
            size -= _bytes(vars(kept.pop(key)))

    cache.set_pixel_cache = stored


def _bytes(found: Any) -> int:
    if isinstance(found, dict):
        return sum(map(_bytes, found.values()))
    if isinstance(found, list | tuple):
        return sum(map(_bytes, found))
    size = getattr(found, "nbytes", 0)
    return size if isinstance(size, int) else 0


MENDS = (_keep_few_pictures,)
