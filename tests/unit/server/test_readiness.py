"""A watchdog that is not fed by its own probes, whatever order the tests fail in."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.server.supervisor.readiness import FailedTest, ReadinessStall

LIMIT = 5.0
RANKS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def stalled_at(ranks: list[int], *, tick: float = 1.0, limit: float = LIMIT) -> float | None:
    """Return when a server is given up that fails these tests, then the last one for good."""
    stall = ReadinessStall(limit)
    for number, rank in enumerate(itertools.chain(ranks, [ranks[-1]] * 20)):
        if stall.is_stalled(FailedTest(rank, "x"), number * tick):
            return number * tick
    return None


@given(RANKS)
def test_a_server_that_passes_nothing_further_is_given_up(ranks):
    """Also one that fails now this test and now that, or that no longer listens."""
    firsts = [n for n, rank in enumerate(ranks) if rank > max([0, *ranks[:n]])]
    gave_up = stalled_at(ranks)
    if not firsts:
        assert gave_up is None  # it has not listened yet: what it logs and computes tells
    else:
        gaps = itertools.pairwise([*firsts, None])
        last = next(now for now, then in gaps if then is None or then - now > LIMIT + 1)
        assert gave_up == last + LIMIT + 1


@given(RANKS)
def test_no_limit_gives_nothing_up(ranks):
    """`CAR_VLLM_MLX_LOAD_STALL=0` waits forever."""
    assert stalled_at(ranks, limit=0.0) is None
