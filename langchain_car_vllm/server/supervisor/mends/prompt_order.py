"""The order in which the batched engine reads the prompts of models that take media."""

from functools import partial
from typing import Any

from .mend import find, find_names, mend, tell_that_it_stepped_aside
from .picture_prompts import TESTED

NAME = "prompts-in-order"
"""Of the mend, as the record has it."""


@mend(NAME, "vllm_mlx.mllm_batch_generator", "vllm-mlx 0.6.0")
def _read_in_order(module: Any) -> None:
    """Have prompts be read one at a time, first come, first served, and short ones in between.

    vllm-mlx 0.6.0 reads a long prompt in parts. A short one that arrives meanwhile is read between
    two of them, but stays in the queue: it is read again after each part, and its answer is mixed
    up. One of which the cache has all but a few tokens counts as long, and waits. A picture waits
    until nobody else is answered, and text that comes later goes first: here it is read in its
    turn, and answered with the others. And what is read together with others is not kept for the
    next turn (`prefix_after_hit`).

    Where this is applied, programs need not take turns: see `Serving.reads_in_order`.
    """
    generator = find(module, "MLLMBatchGenerator")
    find(generator, "_process_prompts", "requests")
    names = "prefix_cache", "completion_batch_size", "_allow_mid_batch_extend"
    find_names(find(generator, "__init__"), *names)
    find_names(find(generator, "insert", "requests"), "unprocessed_requests", "uid")
    find_names(find(module, "MemoryAwarePrefixCache").__contains__, "_entries")
    install = find(module, "install_chunked_prefill_mllm", "batch_gen", "budget")
    find_names(install, "unprocessed_requests", "_partial", "active_batch", "_next")

    def installed(batch_gen: Any, budget: int, *args: Any, **kwargs: Any) -> None:
        install(batch_gen, budget, *args, **kwargs)
        batch_gen._next = partial(_step, batch_gen, batch_gen._next, budget)

    module.install_chunked_prefill_mllm = installed


def _step(generator: Any, step: Any, budget: int) -> Any:
    """Take a step that sees the prompt whose turn it is, and none of the others."""
    hidden = sorted(generator.unprocessed_requests, key=lambda request: request.uid)
    generator.unprocessed_requests = []
    beside = _find_one_beside(generator, hidden, budget)
    if beside is not None and _read_beside(generator, beside):
        hidden.remove(beside)
    elif generator._partial is None:
        generator.unprocessed_requests, hidden = hidden[:1], hidden[1:]
    try:
        return step()
    finally:
        generator.unprocessed_requests = [*generator.unprocessed_requests, *hidden]


def _find_one_beside(generator: Any, requests: "list[Any]", budget: int) -> Any:
    """Return a prompt that the generator would have wait, and may be read now; None for none.

    That is the first short one while a long one is read, else a picture whose turn has come while
    others are answered.
    """
    if not generator._allow_mid_batch_extend:
        return None
    if generator._partial is not None:
        return next((each for each in requests if _is_short(generator, each, budget)), None)
    answered = generator.active_batch
    has_room = bool(answered) and len(answered) < generator.completion_batch_size
    return requests[0] if has_room and requests and _may_join(generator, requests[0]) else None


def _read_beside(generator: Any, request: Any) -> bool:
    """Read a prompt by itself, and have it answered with the others; tell whether that was done."""
    try:
        batch = generator._process_prompts([request])
    except Exception as error:  # noqa: BLE001 - it is told when its turn has come
        request.has_failed = True
        tell_that_it_stepped_aside(NAME, error)
        return False
    if batch is not None and generator.active_batch is not None:
        generator.active_batch.extend(batch)
    elif batch is not None:
        generator.active_batch = batch
    return True


def _may_join(generator: Any, request: Any) -> bool:
    """Tell whether a prompt with pictures may be read while others are answered."""
    if not request.images or request.videos or request.audio:
        return False
    # Other models may keep positions of the last picture for all that is answered.
    kind = getattr(getattr(generator.model, "config", None), "model_type", None)
    return kind in TESTED and not getattr(request, "has_failed", False)


def _is_short(generator: Any, request: Any, budget: int) -> bool:
    """Tell whether all that is to be read of a prompt is one part."""
    if request.images or request.videos or request.audio or request.input_ids is None:
        return False
    if getattr(request, "has_failed", False):
        return False
    tokens = request.input_ids.reshape(-1).tolist()
    return len(tokens) - _known(generator.prefix_cache, tokens) <= budget


def _known(cache: Any, tokens: "list[int]") -> int:
    """Return how many tokens at the beginning of a prompt a cache has."""
    if cache is None:
        return 0
    keys = [key for key in cache._entries if len(key) < len(tokens)]
    ends = {len(key) for key in keys if key[-1] == tokens[len(key) - 1]}
    return next((end for end in sorted(ends, reverse=True) if tokens[:end] in cache), 0)


MENDS = (_read_in_order,)
