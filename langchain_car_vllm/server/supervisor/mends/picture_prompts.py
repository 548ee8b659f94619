"""What the batched engine keeps of prompts that show pictures, so that the next turn finds it.

vllm-mlx 0.6.0 keeps prompts of text alone: its cache is found by tokens, and the places of all
pictures have the same one. A conversation that has shown a picture once is read anew, picture
included, at each turn.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .mend import Mend, find, tell_that_it_stepped_aside

_NAME = "prefix-with-pictures"
_TESTED = ("gemma4", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
"""Model types that read a text behind pictures as they read any other."""
_WORD = 4
_BY_TOKEN = ("input_ids", "attention_mask", "extra_kwargs")
_INPUTS = (*_BY_TOKEN, "pixel_values", "image_grid_thw")


def _keep_prompts_with_pictures(module: Any) -> None:
    """Have a prompt with pictures kept and found like one of text, under tokens that name them.

    The token at a picture's place gives way to a part of a digest of all pictures, below zero,
    where the vocabulary has none. From then on the generator takes the prompt for text: it looks
    for a beginning, reads the rest and keeps what it has read. Three things differ. Positions are
    those of the real tokens. A beginning that does not hold all pictures counts as none. And where
    nothing is found, the pictures are read as ever.
    """
    generator = find(module, "MLLMBatchGenerator")
    find(generator, "_preprocess_request", "request")
    find(generator, "_derive_request_rope_deltas", "request")
    find(generator, "_run_chunked_text_prefill", "request", "cache")
    find(generator, "_process_prompts", "requests")
    find(generator, "_run_vision_encoding", "request", "cache")
    find(generator, "_capture_dense_rope_delta", "request")
    find(generator, "_resolved_specprefill_config", "request")
    find(generator, "_cache_leaves", "cache_list")
    cache = find(module, "MemoryAwarePrefixCache")
    find(cache, "fetch", "tokens")
    _name_pictures_before_reading(generator)
    _read_pictures_that_are_not_found(generator)
    _find_all_pictures_or_none(cache)


def _name_pictures_before_reading(generator: Any) -> None:
    preprocess = generator._preprocess_request
    derive = generator._derive_request_rope_deltas

    def preprocessed(self: Any, request: Any) -> None:
        if _shown(request) is not None:
            return
        preprocess(self, request)
        try:
            _name_pictures(self, request)
        except Exception as error:  # noqa: BLE001 - nothing of it is kept then
            tell_that_it_stepped_aside(_NAME, error)

    def derived(self: Any, request: Any) -> Any:
        with _as_shown(request):
            return derive(self, request)

    generator._preprocess_request = preprocessed
    generator._derive_request_rope_deltas = derived


def _read_pictures_that_are_not_found(generator: Any) -> None:
    prefill, process = generator._run_chunked_text_prefill, generator._process_prompts

    def prefilled(self: Any, request: Any, cache: Any) -> Any:
        if _shown(request) is None:
            return prefill(self, request, cache)
        with _as_shown(request):
            logits = self._run_vision_encoding(request, cache=cache)
            self._capture_dense_rope_delta(request)
        # What takes more places in the cache than in the prompt cannot be continued by its tokens.
        offsets = {getattr(leaf, "offset", None) for leaf in self._cache_leaves(cache)} - {None}
        request.is_text_only = offsets == {request.input_ids.size}
        return logits

    def processed(self: Any, requests: Any) -> Any:
        asked = list(requests)
        batch = process(self, requests)
        for request in asked:
            if inputs := _shown(request):
                inputs.clear()  # pixels take hundreds of megabytes
        return batch

    generator._run_chunked_text_prefill = prefilled
    generator._process_prompts = processed


def _find_all_pictures_or_none(cache: Any) -> None:
    fetch = cache.fetch

    def fetched(self: Any, tokens: Any) -> Any:
        found, rest = fetch(self, tokens)
        if found is None or min(rest, default=0) >= 0:
            return found, rest
        self._stats.hits -= 1
        self._stats.misses += 1
        self._stats.tokens_saved -= len(tokens) - len(rest)
        return None, tokens

    cache.fetch = fetched


def _shown(request: Any) -> "dict[str, Any] | None":
    """Return what the processor made of a request whose pictures have names, None for others."""
    shown: dict[str, Any] | None = getattr(request, "inputs_as_shown", None)
    return shown


def _name_pictures(generator: Any, request: Any) -> None:
    """Put names in the place of pictures, where a prompt with them may be kept."""
    import mlx.core as mx

    config = generator.model.config
    pixels, is_sparse = request.pixel_values, generator._resolved_specprefill_config(request)[1]
    if generator.prefix_cache is None or config.model_type not in _TESTED or is_sparse:
        return
    if request.videos or request.audio or not isinstance(pixels, mx.array):
        return
    tokens = request.input_ids.reshape(-1).tolist()
    places = [place for place, token in enumerate(tokens) if token == config.image_token_id]
    names = _names_of(pixels, request.image_grid_thw)
    for n, place in enumerate(places):
        tokens[place] = names[n % len(names)]
    if places:
        shown = {name: getattr(request, name) for name in _INPUTS}
        request.input_ids = mx.array([tokens])
        request.inputs_as_shown, request.is_text_only = shown, True


def _names_of(*arrays: Any) -> "list[int]":
    """Return a digest of arrays as numbers below zero."""
    import mlx.core as mx

    digest = hashlib.blake2b(digest_size=8 * _WORD)
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(memoryview(mx.contiguous(array).view(mx.uint8)))
    words = memoryview(digest.digest()).cast("I").tolist()
    return [-1 - word % 2**31 for word in words]


@contextmanager
def _as_shown(request: Any) -> "Iterator[None]":
    """Give a request what the processor made of it, up to where it ends, for a while."""
    shown, tokens = _shown(request), request.input_ids
    if shown is None:
        yield
        return
    whole, size = shown["input_ids"].size, tokens.size
    for name, value in shown.items():
        setattr(request, name, _cut(value, whole, size) if name in _BY_TOKEN else value)
    try:
        yield
    finally:
        request.input_ids, request.extra_kwargs = tokens, {}
        request.pixel_values = request.attention_mask = request.image_grid_thw = None


def _cut(value: Any, whole: int, size: int) -> Any:
    """Shorten what has an entry for each token."""
    if isinstance(value, dict):
        return {name: _cut(each, whole, size) for name, each in value.items()}
    is_by_token = getattr(value, "shape", None) in ((whole,), (1, whole))
    return value[..., :size] if is_by_token else value


MENDS = (
    Mend(
        name=_NAME,
        module="vllm_mlx.mllm_batch_generator",
        tested="vllm-mlx 0.6.0",
        purpose="keep prompts that show pictures, so that later turns read only what is new",
        apply=_keep_prompts_with_pictures,
    ),
)
