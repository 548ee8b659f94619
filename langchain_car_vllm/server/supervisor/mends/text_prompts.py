"""How the batched engine reads and keeps the prompts of text models with caches of other kinds.

Such a cache holds the state of recurrent layers (linear attention, Mamba) or a window of the last
tokens, and cannot be rewound.
"""

from contextlib import suppress
from typing import Any

from .answer_beginnings import RECURRENT, WINDOWS, beginnings_of_answers, holds, tail_of
from .mend import Mend, find


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


def _keep_each_prompt(module: Any) -> None:
    """Store each prompt up to where the answer begins, and leave those it began with to the others.

    vllm-mlx 0.6.0 stores a prompt whose cache cannot be rewound only once it has grown by 4096
    tokens since the last time: until then each turn reads again what all turns since have added.
    It stores it with the first token of the answer, so that nothing is found where a template opens
    a thought, or the next prompt shows the answer otherwise. And it drops the prompt that a longer
    one began with, such as a system prompt that other conversations share.

    Here reading stops at the last message's end, and what has been read is stored. The least
    recently used ones go where memory ends, as with multimodal models.
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
    """Has prompts be read in two pieces, and stores the first.

    Args:
        scheduler: Whose prompts.
        batches: What reads them; its `insert` and `next` are replaced.
    """

    def __init__(self, scheduler: Any, batches: Any) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self._scheduler, self._batches = scheduler, batches
        self._insert, self._next = batches.insert, batches.next
        # Tokens of both pieces, by request; and the requests whose first piece is stored.
        self._waiting: dict[int, tuple[int, int]] = {}
        self._kept: set[int] = set()
        caches = make_prompt_cache(scheduler.model)
        if any(holds(cache, *RECURRENT, *WINDOWS) for cache in caches):
            self._ends = beginnings_of_answers(scheduler._actual_tokenizer)
            batches.insert, batches.next = self.insert, self.next

    def is_kept(self, uid: int) -> bool:
        """Tell whether the prompt of a request is stored."""
        return uid in self._kept

    def insert(self, prompts: Any, **settings: Any) -> Any:
        """Add a request in two pieces; what reads several at once, or a single token, stays."""
        if len(prompts) != 1 or len(prompts[0]) == 1:
            return self._insert(prompts, **settings)
        tail = tail_of(list(prompts[0]), self._ends) or 1
        pieces = [prompts[0][:-tail], prompts[0][-tail:]]
        self._forget_ended()
        uids = self._batches.insert_segments([pieces], **settings)
        self._waiting[uids[0]] = len(pieces[0]), tail
        return uids

    def next(self) -> Any:
        """Take a step, and store what has been read up to its first piece's end."""
        result = self._next()
        for response in result[0]:
            first, tail = self._waiting.get(response.uid, (None, 0))
            if response.end_of_segment and response.progress[0] == first:
                del self._waiting[response.uid]
                with suppress(Exception):  # no answer is lost for what would have been kept
                    self._keep(response.uid, tail)
        return result

    def _forget_ended(self) -> None:
        known = self._scheduler.uid_to_request_id
        self._waiting = {uid: sizes for uid, sizes in self._waiting.items() if uid in known}
        self._kept &= known.keys()

    def _keep(self, uid: int, tail: int) -> None:
        scheduler, batch = self._scheduler, self._batches._prompt_batch
        request = scheduler.requests.get(scheduler.uid_to_request_id.get(uid))
        if request is None or uid not in batch.uids:
            return
        tokens = list(request.prompt_token_ids)[:-tail]
        cache = batch.extract_cache(batch.uids.index(uid))
        is_whole = scheduler._cache_coverage(cache) in (None, len(tokens))
        if not is_whole or not scheduler._prompt_output_entry_is_useless(cache):
            return
        if scheduler.memory_aware_cache.store(tokens, cache, evict_prefixes=False):
            self._kept.add(uid)


MENDS = (
    Mend(
        name="recurrent-prompts",
        module="vllm_mlx.scheduler",
        tested="vllm-mlx 0.6.0, mlx-lm 0.31.3",
        purpose="read the prompts of text models with recurrent layers one after the other, since "
        "read together all but the longest are answered wrongly",
        apply=_read_one_by_one,
    ),
    Mend(
        name="prefix-each-turn",
        module="vllm_mlx.scheduler",
        tested="vllm-mlx 0.6.0",
        purpose="keep the prompt of each turn, up to where its answer begins, on text models whose "
        "caches cannot be rewound, so that the next one reads only what is new",
        apply=_keep_each_prompt,
    ),
)
