"""A conversation's prompt is kept after each turn, however short the turn."""

import functools
from contextlib import suppress
from typing import Any

from .mend import find, mend


@mend("prefix-after-hit", "vllm_mlx.mllm_batch_generator", "vllm-mlx 0.6.0")
def _keep_prompts_after_hits(module: Any) -> None:
    """Store the prompt of a request that found a prefix and had at most a chunk to read.

    Caches with linear attention, and windows that are full, cannot be rewound after generation, so
    they must be stored when the prompt has been read. vllm-mlx 0.6.0 does so after a miss, and for
    prompts with more than a chunk to read, but not here: an agent with short turns reads up to a
    chunk again at each of them.

    Only a request that is read alone is stored, which is so as prompts are read in turns.
    """
    generator = find(module, "MLLMBatchGenerator")
    process = find(generator, "_process_prompts", "requests")
    find(generator, "_needs_prefill_checkpoint", "cache_list")
    find(generator, "_publish_prefill_checkpoint", "request_id", "checkpoint_entry")
    find(generator, "_clone_prefix_for_replay", "cache_list")
    find(generator, "_cache_leaves", "cache_list")
    is_text_only = find(module, "is_text_only_prefix_cache_request")

    @functools.wraps(process)
    def patched(self: Any, requests: Any) -> Any:
        if len(requests) != 1 or getattr(self, "prefix_cache", None) is None:
            return process(self, requests)
        request, clones, said = requests[0], [], []
        clone, processors = self._clone_prefix_for_replay, request.logits_processors

        def noted(cache_list: Any) -> Any:
            copied = clone(cache_list)
            clones.append(copied)
            return copied

        def note(_tokens: Any, logits: Any) -> Any:
            said.append(logits + 0)
            return logits

        self._clone_prefix_for_replay = noted
        request.logits_processors = [note, *(processors or ())]
        try:
            batch = process(self, requests)
        finally:
            del self._clone_prefix_for_replay
            request.logits_processors = processors
        if batch is not None:
            _remove(note, batch)
            with suppress(Exception):  # no answer is lost for what would have been kept
                if len(clones) == 1 and clones[0] and is_text_only(request):
                    _store(self, request, clones[0], said[0])
        return batch

    generator._process_prompts = patched


def _remove(processor: Any, batch: Any) -> None:
    """Take a processor out of the only row of a batch."""
    row = [each for each in batch.logits_processors[0] if each is not processor]
    batch.logits_processors = [row] if row else None


def _store(generator: Any, request: Any, cache: Any, said: Any) -> None:
    """Store what was read, with what its last position says; an exact repeat begins there.

    That is what it says before processors (a schema, a budget for thoughts) change it: a repeat may
    have others.
    """
    tokens = request.input_ids.reshape(-1).tolist()
    offsets = {getattr(leaf, "offset", None) for leaf in generator._cache_leaves(cache)} - {None}
    if offsets - {len(tokens)} or not generator._needs_prefill_checkpoint(cache):
        return
    if request.request_id in generator._aborted_request_ids:
        return
    if generator.prefix_cache.fetch_exact_auxiliary(tokens) is not None:
        return
    entry = generator.prefix_cache.prepare_store(tokens, cache, auxiliary={"last_logits": said})
    generator._publish_prefill_checkpoint(request.request_id, entry)


MENDS = (_keep_prompts_after_hits,)
