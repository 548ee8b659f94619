"""How much memory a server needs, how much there is, and the context that fits.

A plan sets aside, beside the weights, what reading a prompt takes for a moment (an estimate: nobody
has measured it on a Mac yet), what the server keeps of earlier prompts, and keys and values for the
conversations under way. What is set aside for company, beside one long conversation, gives way
where another model needs the room. Pure but for `budget_bytes`.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from langchain_car_vllm.environment import CAR_VLLM_MLX_MEMORY_GB
from langchain_car_vllm.models.kv_cache import KvCache
from langchain_car_vllm.runtime.metal import working_set_limit
from langchain_car_vllm.server.machine_memory import machine_memory
from langchain_car_vllm.server.spec import argument_value

_SHARE = 0.75
_MB = 1_000_000
_SERVERS_MB = 2**20
_MOST_BYTES = 2**60
_CACHE_SHARE = 0.1
_CACHE_MB = (256, 8192)
# Of the weights, while a prompt is read: in steps of 2,048 tokens, and in chunks of at most 512.
_PREFILL_SHARE, _CHUNK_SHARE = 0.15, 0.05
_LEAST_PREFILL = 1_000_000_000
# A plan below that is useless: no agent gets by with less.
_LEAST_CONTEXT = 8192
# So much is set aside wherever there is room; beyond it a model leaves half of the room to others.
_EASY_CONTEXT = 32_768
_OTHERS_SHARE = 1 / 8
_MOST_SEQUENCES = 32
_LEAST_SEQUENCE = 1024
_MOST_ROOM = _MOST_SEQUENCES * _LEAST_CONTEXT


class Memory(NamedTuple):
    """What a server sets aside, in bytes but for the tokens.

    Attributes:
        weights: Of the model.
        prefill: While a prompt is read; 0 where the model's layers are unknown.
        cache: Limit of the batched engine's prompt cache.
        kv: Keys and values of the conversations under way; 0 where their cost is unknown.
        context: Tokens that one conversation can have, None where nothing bounds them.
        room: Tokens of all conversations together, None where their cost is unknown.
        sequences: Conversations at the same time, None for the server's own limit.
        company: Bytes of `kv` that come to those of the one longest conversation.
        spare_cache: Bytes of `cache` that a start can do without.
        cost: What a conversation takes, None where unknown.
    """

    weights: int
    prefill: int = 0
    cache: int = 0
    kv: int = 0
    context: int | None = None
    room: int | None = None
    sequences: int | None = None
    company: int = 0
    spare_cache: int = 0
    cost: KvCache | None = None

    @property
    def needed(self) -> int:
        """What is set aside in all."""
        return self.weights + self.prefill + self.cache + self.kv

    @property
    def least(self) -> int:
        """What a running server keeps in any case: all but the room for company."""
        return self.needed - self.company

    @property
    def least_to_start(self) -> int:
        """What a server can be started with."""
        return self.least - self.spare_cache

    def within(self, available: int) -> "Memory":
        """Return what is set aside where so many bytes are left.

        The longest conversation stays as it is. Company and earlier prompts give way alike.

        Args:
            available: Bytes; fewer than `least_to_start` count as that.
        """
        if available >= self.needed:
            return self
        less = self._with_spare_cache(max(0, available - self.least_to_start))
        if self.cost is None or not self.company or self.room is None or self.context is None:
            return less
        limit = min(self.company, max(0, available - less.least))
        grown = (self.room - self.context) * limit // self.company if self.cost.per_token else 0
        room = self.context + grown
        sequences = min(self.sequences or 1, max(1, room // _LEAST_SEQUENCE))
        if self.cost.overhead:
            others = (self.sequences or 1) - 1
            sequences = min(sequences, 1 + others * limit // self.company)
        if not self.cost.per_token:
            room = self.context * sequences
        company = grown * self.cost.per_token + (sequences - 1) * self.cost.overhead
        kv = self.kv - self.company + company
        return less._replace(kv=kv, room=room, sequences=sequences, company=company)

    def _with_spare_cache(self, left: int) -> "Memory":
        """Return the same with the share of so many bytes that comes to earlier prompts."""
        elastic = self.company + self.spare_cache
        if not self.spare_cache or left >= elastic:
            return self
        kept = self.cache - self.spare_cache + self.spare_cache * left // elastic
        given = self.cache - kept // _MB * _MB
        return self._replace(cache=self.cache - given, spare_cache=max(0, self.spare_cache - given))

    def running_with(self, reserved: "Memory") -> "Memory":
        """Return the most that a server can have which was started with less.

        Company is taken back later. Earlier prompts are not: the server is told their limit once.
        """
        return self._replace(cache=reserved.cache, spare_cache=0)

    @property
    def cache_mb(self) -> int:
        """The limit of the prompt cache in the server's MB, 0 where there is none."""
        return self.cache // _SERVERS_MB


def budget_bytes() -> int:
    """Return the memory that all servers may take together.

    `CAR_VLLM_MLX_MEMORY_GB` in GB of 10^9 bytes. By default three quarters of the machine's memory,
    or of the container's, on a Mac at most what Metal recommends.

    Raises:
        ConfigurationError: The variable is not a positive number, or it has to be set: a sandbox
            lets nobody ask how much memory there is.
    """
    gigabytes = CAR_VLLM_MLX_MEMORY_GB.read()
    if gigabytes is None:
        total = machine_memory()
        return working_set_limit(total, int(total * _SHARE))
    return int(min(gigabytes * 1e9, _MOST_BYTES))


def memory_for(
    weights: int,
    kv: KvCache | None,
    window: int | None,
    *,
    batched: bool,
    chunked: bool,
    budget: int,
    server_args: Sequence[str] = (),
    alone: bool = False,
) -> Memory:
    """Return what a chat server sets aside; more than the budget where it cannot fit.

    Args:
        weights: Bytes that the server loads.
        kv: What a conversation takes, None where unknown.
        window: Tokens that the model was made for, None where unknown.
        batched: Whether it answers several at once.
        chunked: Whether it reads prompts in small chunks.
        budget: Bytes that all servers may take together.
        server_args: The user's; `--max-kv-size`, `--max-num-seqs`, `--completion-batch-size` and
            what limits the prompt cache count.
        alone: Whether requests are answered one at a time.
    """
    # Of a model whose layers nobody knows neither prompts nor conversations are estimated.
    prefill = _prefill_bytes(weights, chunked=chunked) if kv else 0
    cache = _cache_bytes(budget, budget - weights - prefill, server_args) if batched else 0
    is_chosen = _chosen_cache(budget, server_args) is not None
    spare = 0 if is_chosen else max(0, cache - _CACHE_MB[0] * _MB)
    most = _most_sequences(server_args) if batched and not alone else 1
    if kv is None:
        sequences = None if batched and not alone else 1
        return Memory(weights, prefill, cache, 0, window, None, sequences, spare_cache=spare)
    free = max(0, budget - weights - prefill - cache)
    context = _context(kv, window, free, budget, _number(server_args, "--max-kv-size"))
    room, sequences, company = _company(kv, context, free, most)
    one = kv.size(context)
    return Memory(
        weights, prefill, cache, one + company, context, room, sequences, company, spare, kv
    )


def _company(kv: KvCache, context: int, free: int, most: int) -> tuple[int, int, int]:
    """Return what is set aside for others beside the one long conversation.

    Returns:
        Tokens of all conversations together, how many there can be, and the bytes that come to
        those of the one.
    """
    if most == 1:
        return context, 1, 0
    one = kv.size(context)
    room = context
    if kv.per_token:
        # A model that is made for less than there is room for serves more at a time instead.
        room += max(0, min(_MOST_ROOM - context, (free // 2 - one) // kv.per_token))
    grown = (room - context) * kv.per_token
    sequences = min(most, max(1, room // _LEAST_SEQUENCE))
    if kv.overhead:
        # Each conversation has windows and states of its own.
        spare = max(0, min(free // 4, free - one - grown))
        sequences = min(sequences, 1 + spare // kv.overhead)
    if not kv.per_token:
        room = context * sequences
    return room, sequences, grown + (sequences - 1) * kv.overhead


def _context(kv: KvCache, window: int | None, free: int, budget: int, wanted: int | None) -> int:
    """Return how many tokens of one conversation are set aside."""
    longest = window or _EASY_CONTEXT
    if wanted:
        return min(wanted, window or wanted)
    others = min(int(budget * _OTHERS_SHARE), free // 4)
    easy = kv.tokens(free - others, min(longest, _EASY_CONTEXT))
    return max(min(longest, _LEAST_CONTEXT), easy, kv.tokens(free // 2, longest))


def _prefill_bytes(weights: int, *, chunked: bool) -> int:
    share = _CHUNK_SHARE if chunked else _PREFILL_SHARE
    return min(weights, max(_LEAST_PREFILL, int(weights * share)))


def _cache_bytes(budget: int, free: int, server_args: Sequence[str]) -> int:
    """Return what the batched engine may keep of earlier prompts."""
    chosen = _chosen_cache(budget, server_args)
    if chosen is not None:
        return chosen
    least, most = (limit * _MB for limit in _CACHE_MB)
    share = min(max(int(budget * _CACHE_SHARE), least), most)
    return max(least, min(share, free // 4)) // _MB * _MB


def _chosen_cache(budget: int, server_args: Sequence[str]) -> int | None:
    """Return what the user's arguments leave to earlier prompts, None where they say nothing.

    A share counts of the budget: the server would take it of what is free at that moment.
    """
    if "--disable-prefix-cache" in server_args:
        return 0
    chosen = _number(server_args, "--cache-memory-mb")
    if chosen is not None:
        return chosen * _SERVERS_MB
    with suppress(ValueError):
        share = float(argument_value(server_args, "--cache-memory-percent") or "")
        return int(share * budget) if 0 < share <= 1 else None
    return None


def _most_sequences(server_args: Sequence[str]) -> int:
    names = ("--max-num-seqs", "--completion-batch-size")
    chosen = [count for name in names if (count := _number(server_args, name))]
    return min(chosen, default=_MOST_SEQUENCES)


def _number(arguments: Sequence[str], flag: str) -> int | None:
    value = argument_value(arguments, flag)
    return int(value) if value and value.isdecimal() else None
