"""What the batched engine keeps of the prompts of models that take media, so that others find it.

A cache of recurrent layers, or of windows, cannot be rewound: it is of use to prompts that begin
with all of it, and vllm-mlx 0.6.0 keeps whole prompts alone. Other conversations share only the
system message. And Qwen3.5's template shows an earlier answer without the thought that it began
with, so the next prompt goes on from the last message, not from where the answer began.
"""

import copy
from contextlib import suppress
from functools import partial
from typing import Any

from .mend import find, mend, tell_that_it_stepped_aside
from .prompt_ends import (
    beginnings_of_answers,
    keeps_beginnings,
    may_not_rewind,
    opening_of_questions,
    system_end_of,
    tail_of,
)

_NAME = "prefix-ends-of-messages"


@mend(_NAME, "vllm_mlx.mllm_batch_generator", "vllm-mlx 0.6.0")
def _keep_ends_of_messages(module: Any) -> None:
    """Store what new conversations share, and what the next turn goes on from.

    That is the system message, with the tools, of a prompt of which nothing was found. And it is
    each prompt up to its last message where its template shows answers otherwise later: with the
    beginning of the answer (`<think>`), no later prompt has it, and each turn reads everything.

    A long prompt is read in chunks, which end there. A short one is read up to its last message in
    a request of its own, which is stored and goes nowhere; the second request finds it.
    """
    generator = find(module, "MLLMBatchGenerator")
    process = find(generator, "_process_prompts", "requests")
    initialise = find(generator, "__init__", "model", "processor")
    install = find(module, "install_chunked_prefill_mllm", "batch_gen", "budget")
    find(generator, "_preprocess_request", "request")
    find(generator, "_store_prefix_snapshot", "cache_key", "cache", "trim_by", "request_id")
    cache = find(module, "MemoryAwarePrefixCache")
    find(cache, "commit_prepared", "entry", "evict_prefixes")
    is_text_only = find(module, "is_text_only_prefix_cache_request")

    def initialised(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self._answer_beginnings, self._question_opening = [], []
        with suppress(Exception):  # nothing is kept then, and everything answered
            self._answer_beginnings, self._question_opening = _ends_to_keep(self)

    def processed(self: Any, requests: Any) -> Any:
        if len(requests) != 1 or not self._answer_beginnings:
            return process(self, requests)
        with suppress(Exception):  # it is met, and told, below
            self._preprocess_request(requests[0])
        part = _up_to_last_message(self, requests[0]) if is_text_only(requests[0]) else None
        if part is None:
            return process(self, requests)
        return _read_in_two(self, requests, part, process)

    def installed(batch_gen: Any, budget: int, *args: Any, **kwargs: Any) -> None:
        install(batch_gen, budget, *args, **kwargs)
        batch_gen._next = partial(_step_with_checkpoint, batch_gen, batch_gen._next)

    generator.__init__ = initialised
    generator._process_prompts = processed
    module.install_chunked_prefill_mllm = installed


def _ends_to_keep(generator: Any) -> "tuple[list[list[int]], list[int]]":
    """Return what answers may begin with, and what stands before the first question.

    Nothing where nothing is to be kept: caches can be rewound, and answers keep their beginnings.
    """
    if generator.prefix_cache is None or not may_not_rewind(generator.language_model):
        return [], []
    processor = generator.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    templated = processor if getattr(processor, "chat_template", None) else tokenizer
    opening = opening_of_questions(tokenizer, templated)
    if keeps_beginnings(templated):
        return [], opening
    return beginnings_of_answers(tokenizer, templated), opening


def _last_message_end(generator: Any, tokens: "list[int]") -> "int | None":
    """Return how many tokens a prompt has up to its last message, None where that is unknown."""
    tail = tail_of(tokens, generator._answer_beginnings)
    return len(tokens) - tail if tail else None


def _up_to_last_message(generator: Any, request: Any) -> Any:
    """Return a request that ends with the last message, None where that is of no use."""
    tokens = request.input_ids.reshape(-1).tolist()
    end = _last_message_end(generator, tokens)
    cache = generator.prefix_cache
    if end is None or tokens in cache or tokens[:end] in cache:
        return None
    part = copy.copy(request)
    part.extra_kwargs = dict(request.extra_kwargs)  # it is emptied once it has been read
    part.input_ids = request.input_ids.reshape(1, -1)[:, :end]
    if request.attention_mask is not None:
        part.attention_mask = request.attention_mask.reshape(1, -1)[:, :end]
    part.logits_processors = None
    part.repetition_penalty, part.presence_penalty = 1.0, 0.0
    return part


def _read_in_two(generator: Any, requests: Any, part: Any, process: Any) -> Any:
    """Read a prompt up to its last message and store that, then read the rest."""
    # What else stores prompts is left out: what it would store is of no use.
    read = getattr(process, "__wrapped__", process)
    prompts, prefixes = generator._stats, generator.prefix_cache._stats
    count = prompts.prompt_tokens
    batch = read(generator, [part])
    if batch is None:  # it was aborted, and the generator has told so
        requests.clear()
        return None
    with suppress(Exception):  # no answer is lost for what would have been kept
        _store(generator, part, batch)
    prompts.prompt_tokens, found = count, prefixes.tokens_saved
    batch = read(generator, requests)
    prefixes.tokens_saved = found
    return batch


def _store(generator: Any, part: Any, batch: Any) -> None:
    """Store what has been read, unless the generator has done so."""
    tokens = part.input_ids.reshape(-1).tolist()
    if part.is_text_only and tokens not in generator.prefix_cache:
        generator._store_prefix_snapshot(
            tokens, batch.extract_cache(0), 0, part.request_id, "message", evict_prefixes=False
        )


def _step_with_checkpoint(generator: Any, step: Any) -> Any:
    """Take a step; have a prompt that is read in chunks be stored where its messages end."""
    responses = step()
    if generator._answer_beginnings or generator._question_opening:
        try:
            _plan_checkpoint(generator, generator._partial)
        except Exception as error:  # noqa: BLE001 - it would end all answers under way
            generator._answer_beginnings, generator._question_opening = [], []
            tell_that_it_stepped_aside(_NAME, error)
    return responses


def _plan_checkpoint(generator: Any, reading: "dict[str, Any] | None") -> None:
    """Store what has been read up to the end of a message, and plan the next end."""
    if reading is None:
        return
    if "keys" not in reading:
        tokens = reading["request"].input_ids.reshape(-1).tolist()
        reading["keys"] = _keys_of(generator, tokens, reading["cached_count"])
    position = reading["cached_count"] + reading["processed"]
    ahead = [key for key in reading["keys"] if len(key) > position]
    entry = reading["checkpoint_entry"]
    if entry is not None and ahead:  # the last one is stored by the generator
        generator.prefix_cache.commit_prepared(entry, evict_prefixes=False)
        reading["checkpoint_entry"] = None
    if ahead:
        reading["checkpoint_at"], reading["checkpoint_key"] = len(ahead[0]), ahead[0]


def _keys_of(generator: Any, tokens: "list[int]", found: int) -> "list[list[int]]":
    """Return the beginnings of a prompt that are to be stored, the shortest first."""
    system_end = 0 if found else system_end_of(tokens, generator._question_opening)
    last_end = _last_message_end(generator, tokens) or 0
    return [tokens[:end] for end in sorted({system_end, last_end} - {0})]


MENDS = (_keep_ends_of_messages,)
