"""How the batched engine reads and keeps the prompts of text models with caches of other kinds.

Such a cache holds the state of recurrent layers (linear attention, Mamba) or a window of the last
tokens, and cannot be rewound.
"""

from typing import Any

from .mend import Mend, UnknownCodeError, find


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
        if any(map(_is_recurrent, make_prompt_cache(model))):
            config.prefill_batch_size = 1
        initialise(self, model, tokenizer, config)

    scheduler.__init__ = patched


def _is_recurrent(cache: Any) -> bool:
    """Tell whether a layer keeps a state, by itself or beside others."""
    kinds = {kind.__name__ for kind in type(cache).__mro__}
    return bool(kinds & {"ArraysCache", "MambaCache"}) or any(
        map(_is_recurrent, getattr(cache, "caches", ()))
    )


def _keep_each_prompt(module: Any) -> None:
    """Store the prompt of every request, and leave those it began with to the others.

    vllm-mlx 0.6.0 stores a prompt whose cache cannot be rewound only once it has grown by 4096
    tokens since the last time: until then each turn reads again what all turns since have added.
    And it drops the prompt that a longer one began with, such as a system prompt that other
    conversations share. Here the least recently used ones go where memory ends, as with multimodal
    models.
    """
    scheduler = find(module, "Scheduler")
    store = find(scheduler, "_store_prompt_only_cache", "request", "response")
    if not isinstance(getattr(scheduler, "SNAPSHOT_REFRESH_TOKENS", None), int):
        raise UnknownCodeError("Scheduler.SNAPSHOT_REFRESH_TOKENS is not a number")

    def patched(self: Any, request: Any, response: Any) -> None:
        cache = self.memory_aware_cache
        if cache is None:
            return
        publish = cache.store

        def keep(tokens: Any, snapshot: Any, **_: Any) -> Any:
            return publish(tokens, snapshot, evict_prefixes=False)

        cache.store = keep
        try:
            store(self, request, response)
        finally:
            del cache.store

    scheduler._store_prompt_only_cache = patched
    scheduler.SNAPSHOT_REFRESH_TOKENS = 0


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
        purpose="keep the prompt of each turn on text models whose caches cannot be rewound, so "
        "that the next one reads only what is new",
        apply=_keep_each_prompt,
    ),
)
