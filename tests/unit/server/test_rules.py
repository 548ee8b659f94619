"""The rules of the machine side that need no process: idleness, backoff, memory, commands."""

import math
import random

import pytest

from langchain_car_vllm.endpoint import Parsers, Serving
from langchain_car_vllm.errors import ServerStartError
from langchain_car_vllm.models.kv_cache import KvCache
from langchain_car_vllm.server.command import (
    Launch,
    is_read_in_parts,
    serve_arguments,
    started_with,
)
from langchain_car_vllm.server.engine import choose_engine
from langchain_car_vllm.server.idle import Use, idle_deadline
from langchain_car_vllm.server.launch_settings import launch_settings
from langchain_car_vllm.server.memory import Memory
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import ServerSpec, argument_value
from langchain_car_vllm.server.supervisor.restarts import is_spent, recent_crashes, start_time

SPEC = ServerSpec(source="org/model", served_name="org/model")
GB = 10**9


@pytest.mark.parametrize(
    ("uses", "deadline"),
    [
        ([], 110.0),
        ([Use(5, 90)], 105.0),
        ([Use(5, 102)], 107.0),
        ([Use(5, 102), Use(60, 90)], 160.0),
        ([Use(0, 102)], 102.0),
        ([Use(-1, 1), Use(5, 102)], math.inf),
    ],
)
def test_deadline_is_the_latest_wish_over_all_clients(uses: list[Use], deadline: float):
    """Readiness at 100 counts as a use of everybody; without clients the default of 10 holds."""
    assert idle_deadline(uses, floor=100.0, default=10.0) == deadline


def test_backoff_grows_with_every_crash_and_has_jitter():
    """The n-th restart waits between half and all of the n-th delay after the last crash."""
    policy, source = Policy(), random.Random(1)
    assert start_time([], policy, source) == 0
    for count, delay in enumerate((1, 2, 4, 8, 30), 1):
        times = {start_time([100.0] * count, policy, source) for _ in range(20)}
        assert min(times) >= 100 + delay / 2
        assert max(times) <= 100 + delay
        assert len(times) > 1


def test_budget_is_five_restarts_in_three_minutes():
    """The sixth crash within the window is one too many; old ones are forgotten."""
    policy = Policy()
    assert not is_spent(recent_crashes([0, 10, 20, 30, 40], 50, policy), policy)
    assert is_spent(recent_crashes([0, 10, 20, 30, 40, 45], 50, policy), policy)
    assert not is_spent(recent_crashes([0, 10, 20, 30, 40, 45], 181, policy), policy)


MINE = {
    engine: ServerSpec(source="m", served_name="m", engine=engine)
    for engine in ("simple", "batched")
}


def test_auto_is_batching():
    """For every model, where the install answers batches rightly; the user's choice wins."""
    for multimodal in (False, True):
        assert choose_engine(SPEC, multimodal=multimodal) == ("batched", None)
        assert choose_engine(MINE["simple"], multimodal=multimodal) == ("simple", None)
        assert choose_engine(MINE["batched"], multimodal=multimodal) == ("batched", None)


@pytest.mark.parametrize("version", ["0.6.5", "0.6.12", "0.6.15"])
def test_tested_versions_of_mlx_vlm_batch(version: str):
    """Both ends of the range included."""
    assert choose_engine(SPEC, multimodal=True, mlx_vlm=version) == ("batched", None)
    assert choose_engine(MINE["batched"], multimodal=True, mlx_vlm=version) == ("batched", None)


@pytest.mark.parametrize("version", ["0.6.4", "0.6.16", "0.7.10", "1.0"])
def test_other_versions_of_mlx_vlm_answer_one_after_the_other(version: str):
    """With a note that names the cure; batches of text stay, wrong batches are refused."""
    engine, note = choose_engine(SPEC, multimodal=True, mlx_vlm=version, python="/p y/python")
    assert engine == "simple"
    assert note is not None
    assert f"mlx-vlm {version}" in note
    assert "uv pip install --python /p y/python 'mlx-vlm>=0.6.5,<0.6.16'" in note
    assert choose_engine(SPEC, multimodal=False, mlx_vlm=version) == ("batched", None)
    assert choose_engine(MINE["simple"], multimodal=True, mlx_vlm=version) == ("simple", None)
    flagged = ServerSpec(source="m", served_name="m", server_args=("--continuous-batching",))
    media = ServerSpec(source="m", served_name="m", server_args=("--mllm",), engine="batched")
    for spec, multimodal in ((MINE["batched"], True), (flagged, True), (media, False)):
        with pytest.raises(ServerStartError, match=f"mlx-vlm {version} gives wrong text") as caught:
            choose_engine(spec, multimodal=multimodal, mlx_vlm=version)
        assert "mlx-vlm>=0.6.5,<0.6.16" in str(caught.value)


def test_users_arguments_come_last():
    """What the user writes overrides what this package chose."""
    spec = ServerSpec(source="m", served_name="m", server_args=("--tool-call-parser", "llama"))
    launch = Launch("m", True, Serving(engine="batched", parsers=Parsers("qwen")))
    arguments = serve_arguments(spec, launch, 1)
    assert arguments[-2:] == ["--tool-call-parser", "llama"]
    assert arguments.index("qwen") < arguments.index("llama")


def test_batched_multimodal_prefills_in_chunks():
    """Without it the whole prefill blocks the server and nothing of a conversation is reused."""
    serving = Serving(engine="batched", multimodal=True)
    arguments = serve_arguments(SPEC, Launch("m", True, serving), 1)
    assert arguments[arguments.index("--chunked-prefill-tokens") + 1] == "512"
    linear = Launch("m", True, serving, linear_attention=True)
    arguments = serve_arguments(SPEC, linear, 1)
    assert arguments[arguments.index("--chunked-prefill-tokens") + 1] == "256"


def test_long_prompts_are_read_in_parts_unless_the_user_says_otherwise():
    """On a batched multimodal server; others have ways of their own."""
    media = Launch("m", True, Serving(engine="batched", multimodal=True))
    for given, expected in (((), True), (("100",), True), (("0",), False), (("-1",), False)):
        arguments = ("--chunked-prefill-tokens", *given) if given else ()
        spec = ServerSpec(source="m", served_name="m", server_args=arguments)
        assert is_read_in_parts(spec, media) == expected
    for other in (Serving(engine="batched"), Serving(engine="simple", multimodal=True)):
        assert not is_read_in_parts(SPEC, Launch("m", True, other))


def test_sampling_defaults_are_passed_since_the_server_ignores_the_file():
    """`generation_config.json` reaches the server as `--default-*`."""
    launch = Launch("m", True, Serving(engine="simple"), sampling={"temperature": 0.6, "top_k": 20})
    arguments = serve_arguments(SPEC, launch, 1)
    assert arguments[arguments.index("--default-temperature") + 1] == "0.6"
    assert arguments[arguments.index("--default-top-k") + 1] == "20"


def test_embedding_server_never_loads_chat_weights():
    """It is started lazily and refuses texts that are too long."""
    spec = ServerSpec(source="e", served_name="e", kind="embeddings")
    arguments = serve_arguments(spec, Launch("e", True, Serving(engine="simple")), 1)
    assert "--lazy-load-model" in arguments
    assert arguments[arguments.index("--embedding-model") + 1] == "e"


def test_reranking_server_never_loads_chat_weights():
    """It is started lazily, with the cross-encoder alone."""
    spec = ServerSpec(source="r", served_name="r", kind="reranker", server_args=("--x",))
    arguments = serve_arguments(spec, Launch("r", True, Serving(engine="simple")), 1)
    assert arguments[-4:] == ["--lazy-load-model", "--rerank-model", "r", "--x"]


def test_the_server_is_told_what_was_planned():
    """Its own limits are those of the plan, so that it agrees with who may send."""
    launch = Launch(
        "m", True, Serving(engine="batched"), memory=Memory(1, cache=7 * 2**20, sequences=3)
    )
    arguments = serve_arguments(SPEC, launch, 1)
    for name, value in (("cache-memory-mb", 7), ("max-num-seqs", 3), ("completion-batch-size", 3)):
        assert arguments[arguments.index(f"--{name}") + 1] == str(value)


def test_a_server_that_starts_with_less_is_told_what_it_may_have_later():
    """Company is taken back once there is room; the limit of earlier prompts stays as it is."""
    planned = Memory(GB, cache=GB, kv=GB, context=8192, room=65_536, sequences=32)
    planned = planned._replace(company=GB // 2, spare_cache=GB // 2, cost=KvCache(10_000))
    launch = Launch("m", True, Serving(engine="batched"), memory=planned)
    less = planned.within(planned.least_to_start + GB // 2)
    started = started_with(launch, less)
    assert started.serving.kv_room_tokens == less.room < planned.room
    assert GB // 2 < less.cache < GB
    arguments = serve_arguments(SPEC, started, 1)
    assert arguments[arguments.index("--max-num-seqs") + 1] == "32"
    assert arguments[arguments.index("--cache-memory-mb") + 1] == str(less.cache // 2**20)
    assert launch_settings(SPEC, started, {})["CAR_VLLM_LAUNCH_MEMORY"] == str(less.needed)
    assert started.memory.needed == planned.needed - (planned.cache - less.cache)


def test_key_holds_what_makes_a_server_another():
    """Wishes that do not change the server do not change the key; everything else does."""
    same = ServerSpec(source="org/model", served_name="org/model", keep_alive=1, auto_pull=False)
    assert same.key() == SPEC.key()
    others = [
        ServerSpec(source="org/other", served_name="org/model"),
        ServerSpec(source="org/model", served_name="org/model", revision="x"),
        ServerSpec(source="org/model", served_name="org/model", engine="simple"),
        ServerSpec(source="org/model", served_name="org/model", server_args=("-x",)),
        ServerSpec(source="org/model", served_name="org/model", server_env=(("A", "b"),)),
    ]
    assert len({SPEC.key(), SPEC.key("/bin/x"), *(spec.key() for spec in others)}) == 7


def test_secrets_are_in_no_repr():
    """`repr` of spec and endpoint show neither environment nor key."""
    from langchain_car_vllm.endpoint import Endpoint

    spec = ServerSpec(source="m", served_name="m", server_env=(("TOKEN", "s3cret"),))
    endpoint = Endpoint("http://127.0.0.1:1/v1", "s3cret", "m")
    assert "s3cret" not in repr(spec) + repr(endpoint)


def test_spec_survives_the_way_to_the_supervisor():
    """What the supervisor reads is what the client had."""
    import json

    spec = ServerSpec(source="m", served_name="m", server_args=("-x",), server_env=(("A", "b"),))
    assert ServerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    policy = Policy(idle_tick=0.5)
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((), None),
        (("--max-kv-size", "1"), "1"),
        (("--max-kv-size=1",), "1"),
        (("--max-kv-size", "1", "--max-kv-size=2"), "2"),
        (("--max-kv-size=1", "--max-kv-size", "2"), "2"),
        (("--max-kv-size",), None),
        (("--max-kv-size=",), ""),
        (("--max-kv-sizes", "1"), None),
    ],
)
def test_the_last_value_on_a_command_line_counts(arguments: tuple[str, ...], value: str | None):
    """A flag means what the server's own parser makes of it, in both ways to write it."""
    assert argument_value(arguments, "--max-kv-size") == value
