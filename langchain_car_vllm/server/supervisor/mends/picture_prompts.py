"""What the batched engine keeps of prompts that show pictures, so that the next turn finds it.

vllm-mlx 0.6.0 keeps prompts of text alone: its cache is found by tokens, and the places of all
pictures have the same one. A conversation that has shown a picture once is read anew, picture
included, at each turn.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from .mend import find, mend, tell_that_it_stepped_aside

_NAME = "prefix-with-pictures"
TESTED = ("gemma4", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
"""Model types that read a text behind pictures as they read any other."""
_READ_ONE_BY_ONE = ("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
"""Those that read a picture by itself, so that one behind what was found can be read too."""
_WORD = 4
_BY_TOKEN = ("input_ids", "attention_mask", "extra_kwargs")
_INPUTS = (*_BY_TOKEN, "pixel_values", "image_grid_thw")


@mend(_NAME, "vllm_mlx.mllm_batch_generator", "vllm-mlx 0.6.0")
def _keep_prompts_with_pictures(module: Any) -> None:
    """Have a prompt with pictures kept and found like one of text, under tokens that name them.

    The token at a picture's place gives way to a part of a digest of all pictures up to it, below
    zero, where the vocabulary has none. From then on the generator takes the prompt for text: it
    looks for a beginning, reads the rest and keeps what it has read. Three things differ. Positions
    are those of the real tokens. Pictures in the rest are read where it is; a model that reads all
    pictures together finds all of them or nothing. And where nothing is found, the pictures are
    read as ever.
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
    find(generator, "_language_model_kwargs", "request", "position_start", "position_end")
    cache = find(module, "MemoryAwarePrefixCache")
    find(cache, "fetch", "tokens")
    _name_pictures_before_reading(generator)
    _read_pictures_that_are_not_found(generator)
    _read_pictures_behind_what_was_found(generator)
    _find_whole_pictures(cache)


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
                request.rest_with_pictures = None
        return batch

    generator._run_chunked_text_prefill = prefilled
    generator._process_prompts = processed


def _read_pictures_behind_what_was_found(generator: Any) -> None:
    arguments_for = generator._language_model_kwargs

    def with_pictures(
        request: Any, position_start: "int | None" = None, position_end: "int | None" = None
    ) -> "dict[str, Any]":
        arguments: dict[str, Any] = arguments_for(request, position_start, position_end)
        if position_start is not None and _shown(request):
            arguments |= _rest_with_pictures(request, position_start, position_end)
        return arguments

    generator._language_model_kwargs = staticmethod(with_pictures)


def _rest_with_pictures(request: Any, start: int, end: "int | None") -> "dict[str, Any]":
    """Return what the language model reads in the place of tokens, where pictures are among them.

    The whole rest of the prompt is made when its first part is asked for.
    """
    rest = getattr(request, "rest_with_pictures", None)
    if rest is None:
        rest = request.rest_with_pictures = (start, _embed(request, start))
    first, features = rest
    if features is None:
        return {}
    part = slice(start - first, None if end is None else end - first)
    given = {"inputs_embeds": features.inputs_embeds[:, part]}
    if features.deepstack_visual_embeds is not None:
        places = features.visual_pos_masks
        before, within = (int(places[:, p].sum()) for p in (slice(part.start), part))
        if within:
            given["visual_pos_masks"] = places[:, part]
            given["deepstack_visual_embeds"] = [
                layer[before : before + within] for layer in features.deepstack_visual_embeds
            ]
    return given


def _embed(request: Any, start: int) -> Any:
    """Return a prompt's features from a token on, None where no picture stands behind it."""
    model, shown = request.shown_to, request.inputs_as_shown
    tokens = shown["input_ids"].reshape(1, -1)
    is_place = tokens == model.config.image_token_id
    rest = slice(start, request.input_ids.size)
    if not is_place[:, rest].any():
        return None
    grid, before = shown["image_grid_thw"], int(is_place[:, :start].sum())
    pictures = _places_and_patches(model.config, grid)
    read = sum(end <= before for end in accumulate(places for places, _ in pictures))
    patches = sum(patches for _, patches in pictures[:read])
    return model.get_input_embeddings(
        tokens[:, rest], shown["pixel_values"][patches:], image_grid_thw=grid[read:]
    )


def _places_and_patches(config: Any, grid: Any) -> "list[tuple[int, int]]":
    """Return how many places in the prompt, and rows of pixels, each picture takes."""
    merged = config.vision_config.spatial_merge_size**2
    return [(patches // merged, patches) for patches in grid.prod(axis=1).tolist()]


def _find_whole_pictures(cache: Any) -> None:
    fetch = cache.fetch

    def fetched(self: Any, tokens: Any) -> Any:
        found, rest = fetch(self, tokens)
        if found is None or min(rest, default=0) >= 0:
            return found, rest
        is_whole = rest[0] >= 0 or tokens[len(tokens) - len(rest) - 1] >= 0
        if is_whole and getattr(self, "reads_pictures_one_by_one", False):
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
    if generator.prefix_cache is None or config.model_type not in TESTED or is_sparse:
        return
    if request.videos or request.audio or not isinstance(pixels, mx.array):
        return
    tokens = request.input_ids.reshape(-1).tolist()
    places = [place for place, token in enumerate(tokens) if token == config.image_token_id]
    is_one_by_one = config.model_type in _READ_ONE_BY_ONE
    shares = [(len(places), pixels.shape[0])]
    if is_one_by_one:
        shares = _places_and_patches(config, request.image_grid_thw)
    if not places or (len(places), pixels.shape[0]) != tuple(map(sum, zip(*shares, strict=True))):
        return
    for place, name in zip(places, _names_of(pixels, request.image_grid_thw, shares), strict=True):
        tokens[place] = name
    shown = {name: getattr(request, name) for name in _INPUTS}
    generator.prefix_cache.reads_pictures_one_by_one = is_one_by_one
    request.input_ids, request.shown_to = mx.array([tokens]), generator.model
    request.inputs_as_shown, request.is_text_only = shown, True


def _names_of(pixels: Any, grid: Any, shares: "list[tuple[int, int]]") -> "Iterator[int]":
    """Yield a number below zero for each place: a part of a digest of all pictures up to it.

    Args:
        pixels: Those of all pictures.
        grid: How they are arranged, a row for each picture, or None.
        shares: How many places, and rows of pixels, each picture takes.
    """
    import mlx.core as mx

    digest, row = hashlib.blake2b(digest_size=8 * _WORD), 0
    for n, (places, rows) in enumerate(shares):
        for array in (pixels[row : row + rows], None if grid is None else grid[n : n + 1]):
            if array is not None:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(memoryview(mx.contiguous(array).view(mx.uint8)))
        words = memoryview(digest.digest()).cast("I").tolist()
        yield from (-1 - words[place % len(words)] % 2**31 for place in range(places))
        row += rows


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


MENDS = (_keep_prompts_with_pictures,)
