"""The context and the company that fit: by rules that hold for all models and machines."""

import pytest
from fakes.published_configs import CONFIGS
from hypothesis import assume, given
from hypothesis import strategies as st

from langchain_car_vllm.models.kv_cache import KvCache, kv_cache_of
from langchain_car_vllm.server.memory import Memory, memory_for
from langchain_car_vllm.server.tickets import kv_tokens

GB = 10**9


def plan(weights, kv, window, budget, *arguments, batched=True, chunked=False) -> Memory:
    return memory_for(
        weights,
        kv,
        window,
        batched=batched,
        chunked=chunked,
        budget=budget,
        server_args=arguments,
    )


KV = st.builds(
    KvCache,
    st.integers(0, 400_000),
    st.just(()) | st.tuples(st.tuples(st.integers(1, 300_000), st.integers(64, 4096))),
    st.integers(0, 2 * 10**8),
)
SIZES = st.integers(10**6, 200 * GB)
ENGINES = st.sampled_from(
    [{"batched": False}, {"batched": True}, {"batched": True, "chunked": True}]
)


@given(SIZES, KV, st.none() | st.integers(512, 10**6), SIZES, ENGINES)
def test_what_is_set_aside_holds_what_is_promised(weights, kv, window, budget, engine):
    """Whatever admission lets in, fits: one long conversation, or as many as there may be."""
    budget += 2 * weights
    memory = plan(weights, kv, window, budget, **engine)
    assume(memory.needed <= budget)
    assert memory.context <= (window or 32_768)
    assert memory.context <= memory.room
    assert memory.kv >= kv.size(memory.context)
    assert 1 <= memory.sequences <= (32 if engine["batched"] else 1)
    each = memory.room // memory.sequences
    assert memory.kv >= memory.sequences * kv.size(min(each, window or each))


@given(SIZES, KV, st.integers(512, 10**6), SIZES)
def test_more_memory_is_never_less_context(weights, kv, window, budget):
    """A larger Mac has at least the context of a smaller one, and fits what that fits."""
    budget += 2 * weights
    small, large = (plan(weights, kv, window, size) for size in (budget, 2 * budget))
    assume(small.needed <= budget)
    assert large.needed <= 2 * budget
    assert large.context >= small.context


@given(SIZES, KV, st.integers(8192, 10**6), SIZES)
def test_what_does_not_fit_needs_more_than_there_is(weights, kv, window, budget):
    """A model is refused only where its weights and the least context exceed the budget."""
    memory = plan(weights, kv, window, budget)
    least = weights + memory.prefill + memory.cache + kv.size(8192)
    assert (memory.needed > budget) == (least > budget)


@pytest.mark.parametrize(
    ("name", "weights", "budget", "fits", "context"),
    [
        # Qwen3-4B at 4 bits on 8 GB with macOS 15: Metal gives 5461 MiB.
        ("Qwen3-4B", 2.3, 5.73, True, (8192, 14_000)),
        ("Qwen3-4B", 2.3, 11.45, True, (30_000, 40_960)),
        ("Qwen3-8B", 4.6, 11.45, True, (20_000, 40_960)),
        ("Qwen3-30B-A3B", 17.2, 22.9, True, (8192, 32_768)),
        ("Qwen3.6-35B-A3B", 20.4, 17.18, False, None),
        ("Qwen3.6-35B-A3B", 20.4, 22.9, True, (32_768, 60_000)),
        ("Qwen3.6-35B-A3B", 20.4, 48.3, True, (262_144, 262_144)),
        ("gemma-4-12B", 6.74, 11.45, True, (32_768, 131_072)),
        ("gemma-4-26B-A4B", 15.6, 17.18, False, None),
        ("gemma-4-26B-A4B", 51.6, 22.9, False, None),
        ("gpt-oss-20b", 12.1, 17.18, True, (32_768, 131_072)),
        ("GLM-4.7-Flash", 16.9, 22.9, True, (16_000, 60_000)),
    ],
)
def test_real_models_on_real_macs(name, weights, budget, fits, context):
    """The figures of published models on the budgets that Metal gives."""
    config = CONFIGS[name]
    text = config.get("text_config", config)
    memory = plan(
        int(weights * GB),
        kv_cache_of(config),
        text["max_position_embeddings"],
        int(budget * GB),
        chunked="vision_config" in config,
    )
    assert (memory.needed <= budget * GB) is fits
    if fits:
        assert context[0] <= memory.context <= context[1]


def test_a_batch_of_many_prompts_waits_in_line():
    """Thirty-two prompts of 2,000 tokens do not fit a 16 GB Mac together: fewer run at a time."""
    kv = kv_cache_of(CONFIGS["Qwen3-8B"])
    memory = plan(int(4.6 * GB), kv, 40_960, int(11.45 * GB))
    assert kv_tokens([2300] * 32) > memory.room
    assert kv_tokens([2300] * 8) <= memory.room


def test_a_batch_is_as_wide_as_its_longest_row():
    """mlx-lm pads the other rows."""
    assert kv_tokens([10, 1000, 10]) == 3000
    assert kv_tokens([]) == 0


@given(SIZES, KV, st.none() | st.integers(512, 10**6), SIZES, st.integers(0, 10**4))
def test_less_room_takes_from_company_and_earlier_prompts_alike(weights, kv, window, budget, share):
    """Whatever is left, the promised conversation stays, and all figures agree with each other."""
    budget += 2 * weights
    full = plan(weights, kv, window, budget)
    assume(full.needed <= budget)
    available = full.least_to_start + (full.needed - full.least_to_start) * share // 10**4
    memory = full.within(available)
    assert memory.needed <= available
    assert full.least_to_start <= memory.least_to_start
    assert (memory.weights, memory.prefill) == (full.weights, full.prefill)
    assert memory.context == full.context <= memory.room <= full.room
    assert 1 <= memory.sequences <= full.sequences
    each = memory.room // memory.sequences
    assert memory.kv >= memory.sequences * kv.size(min(each, window or each))
    if full.spare_cache and full.company:
        kept = (memory.cache - full.cache) / full.spare_cache + 1
        assert kept == pytest.approx(share / 10**4, abs=2**20 / full.spare_cache + 0.001)
        others = full.sequences - 1
        assert memory.sequences - 1 >= others * share // 10**4 - 1 or kv.per_token
    assert memory.within(available) == memory
    assert memory.within(0).needed <= memory.least_to_start


def test_what_the_user_chose_for_earlier_prompts_stays():
    """`--cache-memory-mb` is not made smaller for others."""
    memory = plan(GB, KvCache(1000), 8192, 12 * GB, "--cache-memory-mb", "700")
    assert memory.within(0).cache == 700 * 2**20
    assert plan(GB, KvCache(1000), 8192, 12 * GB).within(0).cache == 256_000_000


def test_users_own_limits_count():
    """What the user gives the server replaces what would be planned."""
    kv = KvCache(100_000)
    assert plan(GB, kv, 262_144, 100 * GB, "--max-kv-size", "100000").context == 100_000
    assert plan(GB, kv, 4096, 100 * GB, "--max-kv-size=100000").context == 4096
    assert plan(GB, kv, 4096, 100 * GB, "--cache-memory-mb", "7").cache == 7 * 2**20
    assert plan(GB, kv, 4096, 100 * GB, "--cache-memory-mb", "7").cache_mb == 7
    assert plan(GB, kv, 40_960, 100 * GB, "--max-num-seqs", "3").sequences == 3
    assert plan(GB, kv, 40_960, 100 * GB, "--completion-batch-size", "1").sequences == 1
    quantised = plan(GB, kv, 4096, 100 * GB, "--kv-cache-quantization")
    assert quantised == plan(GB, kv, 4096, 100 * GB)


def test_an_unknown_cost_is_said_to_be_unknown():
    """Without the figures of the layers nothing is promised but what the model says itself."""
    memory = plan(GB, None, 4096, 100 * GB)
    assert (memory.kv, memory.context, memory.room, memory.sequences) == (0, 4096, None, None)
    assert plan(GB, None, None, 100 * GB).context is None


def test_the_prompt_cache_gives_way():
    """A tenth of the budget within bounds, less where the model leaves little."""
    kv = KvCache(1000)
    assert plan(GB, kv, 8192, GB).cache == 256_000_000
    assert plan(GB, kv, 8192, 12 * GB).cache == 1_200_000_000
    assert plan(10 * GB, kv, 8192, 12 * GB + 500_000_000).cache == 256_000_000
    assert plan(GB, kv, 8192, 1000 * GB).cache == 8_192_000_000
    assert plan(GB, kv, 8192, 12 * GB, batched=False).cache_mb == 0


def test_the_server_keeps_no_more_of_earlier_prompts_than_is_set_aside():
    """Its megabytes are those of 2**20 bytes."""
    memory = plan(GB, KvCache(1000), 8192, 12 * GB)
    assert memory.cache - 2**20 < memory.cache_mb * 2**20 <= memory.cache


def test_a_share_for_earlier_prompts_is_one_of_the_budget():
    """The megabytes that the server is given win there, so that a share is turned into them."""
    kv = KvCache(1000)
    assert plan(GB, kv, 8192, 12 * GB, "--cache-memory-percent", "0.25").cache == 3 * GB
    for nonsense in ("0", "-1", "1.5", "nan", "many", ""):
        named = plan(GB, kv, 8192, 12 * GB, "--cache-memory-percent", nonsense)
        assert named == plan(GB, kv, 8192, 12 * GB)
    off = plan(GB, kv, 8192, 12 * GB, "--disable-prefix-cache", "--cache-memory-mb", "7")
    assert (off.cache, off.cache_mb) == (0, 0)
