"""Short prompts read between the parts of a long one, on text models with recurrent layers.

The batched engine reads the prompts of such a model one after the other (`text_prompts`).
"""

from collections import deque
from functools import partial
from typing import Any

from .mend import find, find_names, mend, tell_that_it_stepped_aside

_NAME = "short-prompts-between"


@mend(_NAME, "vllm_mlx.scheduler", "vllm-mlx 0.6.0, mlx-lm 0.31.3")
def _read_short_ones_between(module: Any) -> None:
    """Have nobody wait for somebody else's document.

    Each step reads one part of the prompt whose turn it is. Of those behind it, the first that has
    no more than a part to be read is read as well, by itself.
    """
    scheduler = find(module, "Scheduler")
    create = find(scheduler, "_create_batch_generator", "sampling_params")
    generator = find(module, "BatchGenerator")
    find_names(find(generator, "next"), "_stream")
    find_names(
        find(generator, "_next"),
        "_currently_processing",
        "_generation_batch",
        "_prompt_batch",
        "_unprocessed_sequences",
        "completion_batch_size",
    )

    def created(self: Any, sampling_params: Any) -> Any:
        batches = create(self, sampling_params)
        if batches.prefill_batch_size == 1 and "_next" not in vars(batches):
            batches.next = partial(_step, batches, batches.next)
        return batches

    scheduler._create_batch_generator = created


def _step(batches: Any, step: Any) -> Any:
    """Take a step, with a short prompt before it where a long one is being read."""
    try:
        short = _take_short_one(batches)
    except Exception as error:  # noqa: BLE001 - it would end all answers under way
        batches.next = step
        tell_that_it_stepped_aside(_NAME, error)
        return step()
    if short is not None:
        _read(batches, step, short)
    return step()


def _take_short_one(batches: Any) -> Any:
    """Take the first short prompt out of the queue where it may be read now, None for none."""
    most, queue = batches.prefill_step_size, batches._unprocessed_sequences
    has_room = len(batches._generation_batch) < batches.completion_batch_size - 1
    left = [total - done for _, done, total in batches._currently_processing]
    if not has_room or not any(tokens > most for tokens in left):
        return None
    for place, sequence in enumerate(queue):
        if sum(map(len, sequence[1])) <= most:
            del queue[place]
            return sequence
    return None


def _read(batches: Any, step: Any, sequence: Any) -> None:
    """Read a prompt to its end, with nobody else in sight, and have it answered with the others."""
    from mlx.core import stream

    prompts, answers = batches._prompt_batch, batches._generation_batch
    waiting, under_way = batches._unprocessed_sequences, batches._currently_processing
    batches._prompt_batch = type(prompts).empty(
        batches.model, batches.sampler, prefill_step_size=batches.prefill_step_size
    )
    batches._generation_batch = type(answers).empty(batches.model, batches.sampler)
    batches._unprocessed_sequences, batches._currently_processing = deque([sequence]), []
    try:
        while batches._unprocessed_sequences or batches._currently_processing:
            step()
        begun = batches._generation_batch
    finally:
        batches._prompt_batch, batches._generation_batch = prompts, answers
        batches._unprocessed_sequences, batches._currently_processing = waiting, under_way
    with stream(batches._stream):
        answers.extend(begun)


MENDS = (_read_short_ones_between,)
