"""What servers wire alone and together, and that the launcher's mend decides as the plan does."""

import json
import platform
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.facts import ModelFacts
from langchain_car_vllm.models.kv_cache import KvCache
from langchain_car_vllm.paths import make_private
from langchain_car_vllm.runtime import metal
from langchain_car_vllm.server.command import launch_for, serve_arguments
from langchain_car_vllm.server.known_model import plan_launch
from langchain_car_vllm.server.memory import budget_bytes
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.mends import memory_limits
from langchain_car_vllm.server.wiring import wired_bytes, wiring_mode

GB = 10**9
SPEC = ServerSpec("m", "m")
MODES = st.sampled_from(["auto", "0", "1"])
SIZES = st.integers(1, 100 * GB)


@given(st.lists(st.tuples(SIZES, MODES), max_size=5), SIZES)
def test_servers_together_wire_at_most_four_fifths(servers, working_set):
    """Whatever each is asked to do; one alone may wire up to the working set."""
    wired: list[int] = []
    for weights, mode in servers:
        wired.append(wired_bytes(weights, mode, working_set, sum(wired)))
    together = [size for size in wired if size]
    assert sum(together) <= working_set
    assert len(together) < 2 or sum(together) <= 0.8 * working_set
    assert wired_bytes(1, "1", None) == 0


@given(SIZES, MODES, SIZES, st.integers(0, 100 * GB))
def test_the_mend_decides_as_the_plan(weights, mode, working_set, by_others):
    """What the supervisor notes for other servers is what the server's process does."""
    calls: list[int] = []
    module = SimpleNamespace(
        set_wired_limit=lambda limit: calls.append(limit) or 0,
        device_info=lambda: {"max_recommended_working_set_size": working_set},
    )
    memory_limits._limit_wiring(module, mode, weights, by_others)
    for _ in range(2):
        module.set_wired_limit(working_set)
    noted = wired_bytes(weights, mode, working_set, by_others)
    assert calls == ([noted] if noted else [])


def test_a_wrong_mode_is_a_clear_error():
    """The server's own environment wins over the process's."""
    own = ServerSpec("m", "m", server_env=(("CAR_VLLM_MLX_WIRED", "1"),))
    assert wiring_mode(own, {"CAR_VLLM_MLX_WIRED": "0"}) == "1"
    assert wiring_mode(SPEC, {}) == "auto"
    assert wiring_mode(SPEC, {"CAR_VLLM_MLX_WIRED": "AUTO"}) == "auto"
    with pytest.raises(ConfigurationError, match="`auto`, `0` or `1`, not `yes`"):
        wiring_mode(SPEC, {"CAR_VLLM_MLX_WIRED": "yes"})


def facts(weights: int) -> ModelFacts:
    return ModelFacts(
        tool_call_parser=None,
        reasoning_parser=None,
        multimodal=False,
        context_window=40_960,
        family="qwen",
        weights_bytes=weights,
        kv=KvCache(20_000),
    )


def arguments(weights: int, wiring: str = "auto") -> dict[str, str]:
    """Return the server's arguments on a Mac whose Metal recommends 100 GB."""
    launch = launch_for(
        SPEC,
        facts(weights),
        "m",
        offline=True,
        budget_bytes=96 * GB,
        wiring=wiring,
        working_set=100 * GB,
    )
    found = serve_arguments(SPEC, launch, 1, 100 * GB)
    share = float(found[found.index("--gpu-memory-utilization") + 1])
    assert share == pytest.approx(launch.memory.needed / (100 * GB), abs=0.001)
    return dict(pairwise(found))


def test_a_server_that_wires_answers_one_at_a_time():
    """Company is what panics; others get it, and all limits follow from what is set aside."""
    assert arguments(82 * GB)["--max-num-seqs"] == "1"
    assert arguments(82 * GB)["--completion-batch-size"] == "1"
    assert int(arguments(82 * GB, "0")["--max-num-seqs"]) > 1
    assert int(arguments(20 * GB)["--max-num-seqs"]) > 1
    assert arguments(20 * GB, "1")["--max-num-seqs"] == "1"


@pytest.mark.parametrize("limit", [0, 0.5, 0.9])
@pytest.mark.parametrize("memory", [16, 24, 32, 36, 48, 64, 128])
def test_a_plan_is_the_same_before_metal_is_asked(
    monkeypatch: pytest.MonkeyPatch, memory: int, limit: float
):
    """What makes the budget decides on wiring too, whether it was asked for or estimated."""
    whole = psutil.virtual_memory()._replace(total=memory * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: whole)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(metal, "_wired_limit_mb", lambda: int(limit * memory * 2**10))
    kv = KvCache(per_token=20_000)

    figure = metal.likely_working_set()

    def launches():
        sizes = (int(share * figure) for share in (0.1, 0.79, 0.81, 1.0, 1.1))
        facts = [ModelFacts(None, None, False, 262_144, weights_bytes=n, kv=kv) for n in sizes]
        return [plan_launch(SPEC, one, None, budget_bytes()) for one in facts]

    estimated = launches()
    assert {launch.is_wired for launch in estimated} == {True, False}
    note = {"bytes": figure, **metal.this_machine()}
    make_private(metal.note_file().parent)
    metal.note_file().write_text(json.dumps(note))
    assert metal.known_working_set() == figure
    assert launches() == estimated
    assert all(launch.memory.sequences == 1 for launch in estimated if launch.is_wired)
