"""How the batched engine reads and keeps the prompts of text models with caches of other kinds.

Such a cache holds the state of recurrent layers (linear attention, Mamba) or a window of the last
tokens, and cannot be rewound.
"""

from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from typing import Any

from .mend import find, mend, tell_that_it_stepped_aside
from .prompt_ends import (
    RECURRENT,
    beginnings_of_answers,
    holds,
    may_not_rewind,
    opening_of_questions,
    system_end_of,
    tail_of,
)

_NAME = "prefix-each-turn"
_BAD_REQUEST = 400


@mend("recurrent-prompts", "vllm_mlx.scheduler", "vllm-mlx 0.6.0, mlx-lm 0.31.3")
def _read_one_by_one(module: Any) -> None:
    """Have prompts of models with recurrent layers be read one after the other.

    Read together they are filled up to one length, and what fills them up goes into the state of
    all but the longest (mlx-lm 0.31.3): their answers are to something else. Answers are still
    given together. There is an option for it, but only the loaded model tells for sure.
    """
    scheduler = find(module, "Scheduler")
    initialise = find(scheduler, "__init__", "model", "config")
    settings = find(module, "SchedulerConfig", "prefill_batch_size")

    def patched(self: Any, model: Any, tokenizer: Any, config: Any = None) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        config = settings() if config is None else config
        if any(holds(cache, *RECURRENT) for cache in make_prompt_cache(model)):
            config.prefill_batch_size = 1
        initialise(self, model, tokenizer, config)

    scheduler.__init__ = patched


@mend("empty-prompts", "vllm_mlx.scheduler", "vllm-mlx 0.6.0")
def _refuse_empty_prompts(module: Any) -> None:
    """Answer 400 to a prompt without a token, which ends all answers under way.

    Chat templates write at least one. `/v1/completions` takes any text, and some tokenizers begin
    it with nothing of their own.
    """
    scheduler = find(module, "Scheduler")
    add = find(scheduler, "add_request", "request")

    def added(self: Any, request: Any) -> None:
        add(self, request)
        if not request.prompt_token_ids:
            self.waiting.remove(request)
            del self.requests[request.request_id]
            raise import_module("fastapi").HTTPException(
                status_code=_BAD_REQUEST, detail="the prompt is empty"
            )

    scheduler.add_request = added


@mend(_NAME, "vllm_mlx.scheduler", "vllm-mlx 0.6.0")
def _keep_each_prompt(module: Any) -> None:
    """Store each prompt up to where the answer begins, and leave those it began with to the others.

    vllm-mlx 0.6.0 stores a prompt whose cache cannot be rewound only once it has grown by 4096
    tokens since the last time: until then each turn reads again what all turns since have added.
    It stores it with the first token of the answer, so that nothing is found where a template opens
    a thought, or the next prompt shows the answer otherwise. And it drops the prompt that a longer
    one began with, such as a system prompt that other conversations share.

    Here reading stops at the last message's end, and what has been read is stored; so it does at
    the system message's end where nothing was found, for other conversations. The least recently
    used ones go where memory ends, as with multimodal models.
    """
    scheduler = find(module, "Scheduler")
    create = find(scheduler, "_create_batch_generator", "sampling_params")
    store = find(scheduler, "_store_prompt_only_cache", "request", "response")
    find(scheduler, "_prompt_output_entry_is_useless", "cache")
    find(scheduler, "_cache_coverage")
    generator = find(module, "BatchGenerator")
    find(generator, "insert", "prompts")
    find(generator, "insert_segments", "segments")

    def created(self: Any, sampling_params: Any) -> Any:
        batches = create(self, sampling_params)
        if self.memory_aware_cache is not None and "_next" not in vars(batches):
            self._kept_prompts = KeptPrompts(self, batches)
        return batches

    def stored(self: Any, request: Any, response: Any) -> None:
        kept = getattr(self, "_kept_prompts", None)
        if kept is None or not kept.is_kept(response.uid):
            store(self, request, response)

    scheduler._create_batch_generator = created
    scheduler._store_prompt_only_cache = stored


class KeptPrompts:
    """Has prompts be read in pieces, and stores what has been read at the end of each but the last.

    Args:
        scheduler: Whose prompts.
        batches: What reads them; its `insert` and `next` are replaced.
    """

    def __init__(self, scheduler: Any, batches: Any) -> None:
        self._scheduler, self._batches = scheduler, batches
        self._insert, self._next = batches.insert, batches.next
        # By request: tokens that were to be read, and where they are to be stored. And the requests
        # whose prompts are stored up to the last message.
        self._waiting: dict[int, tuple[int, list[int]]] = {}
        self._kept: set[int] = set()
        if may_not_rewind(scheduler.model):
            tokenizer = scheduler._actual_tokenizer
            self._beginnings = beginnings_of_answers(tokenizer)
            self._opening = opening_of_questions(tokenizer)
            batches.insert, batches.next = self.insert, self.next

    def is_kept(self, uid: int) -> bool:
        """Tell whether the prompt of a request is stored."""
        return uid in self._kept

    def insert(self, prompts: Any, **settings: Any) -> Any:
        """Add a request in pieces; what reads several at once, or a single token, stays."""
        if len(prompts) != 1 or len(prompts[0]) < 2:  # noqa: PLR2004
            return self._insert(prompts, **settings)
        try:
            self._forget_ended()
            pieces, ends = self._pieces(list(prompts[0]), is_new=not settings.get("caches"))
        except Exception as error:  # noqa: BLE001 - no answer is lost for it
            self._step_aside(error)
            return self._insert(prompts, **settings)
        uids = self._batches.insert_segments([pieces], **settings)
        self._waiting[uids[0]] = len(prompts[0]), ends
        return uids

    def _pieces(self, prompt: "list[int]", *, is_new: bool) -> "tuple[list[list[int]], list[int]]":
        """Return the pieces of a prompt, and how many tokens stand before each end but the last."""
        last_end = len(prompt) - (tail_of(prompt, self._beginnings) or 1)
        system_end = system_end_of(prompt, self._opening) if is_new else 0
        ends = [*([system_end] if 0 < system_end < last_end else []), last_end]
        return [prompt[a:b] for a, b in pairwise([0, *ends, len(prompt)])], ends

    def next(self) -> Any:
        """Take a step, and store what has been read up to an end."""
        result = self._next()
        try:
            for response in result[0]:
                self._note(response)
        except Exception as error:  # noqa: BLE001 - it would end all answers under way
            self._step_aside(error)
        return result

    def _note(self, response: Any) -> None:
        """Store what has been read where that is an end."""
        count, ends = self._waiting.get(response.uid, (0, []))
        if response.end_of_segment and ends and response.progress[0] == ends[0]:
            end = ends.pop(0)
            with suppress(Exception):  # no answer is lost for what would have been kept
                if self._store(response.uid, count - end) and not ends:
                    self._kept.add(response.uid)

    def _step_aside(self, error: Exception) -> None:
        self._batches.insert, self._batches.next = self._insert, self._next
        tell_that_it_stepped_aside(_NAME, error)

    def _forget_ended(self) -> None:
        known = self._scheduler.uid_to_request_id
        self._waiting = {uid: ends for uid, ends in self._waiting.items() if uid in known}
        self._kept &= known.keys()

    def _store(self, uid: int, tail: int) -> bool:
        """Store what has been read of a prompt, all but its tail; return whether that was taken."""
        scheduler, batch = self._scheduler, self._batches._prompt_batch
        request = scheduler.requests.get(scheduler.uid_to_request_id.get(uid))
        if request is None or uid not in batch.uids:
            return False
        tokens = list(request.prompt_token_ids)[:-tail]
        cache = batch.extract_cache(batch.uids.index(uid))
        is_whole = scheduler._cache_coverage(cache) in (None, len(tokens))
        if not is_whole or not scheduler._prompt_output_entry_is_useless(cache):
            return False
        return bool(scheduler.memory_aware_cache.store(tokens, cache, evict_prefixes=False))


@mend("closed-batches", "vllm_mlx.scheduler", "vllm-mlx 0.6.0")
def _free_closed_batches(module: Any) -> None:
    """Free at once what has been closed, such as a batch whose step has failed for want of memory.

    What the mends put into it refers to it, and it would keep the caches of all its requests beside
    those of the next ones, until Python looks for such circles.
    """
    scheduler = find(module, "Scheduler")
    close = find(scheduler, "_close_batch_generator")

    def closed(self: Any) -> None:
        batches = self.batch_generator
        close(self)
        self._kept_prompts = None
        for name in ("insert", "next") if batches is not None else ():
            vars(batches).pop(name, None)

    scheduler._close_batch_generator = closed


MENDS = (
    _read_one_by_one,
    _refuse_empty_prompts,
    _keep_each_prompt,
    _free_closed_batches,
)
