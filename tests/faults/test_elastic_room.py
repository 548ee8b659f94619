"""Room for company: it gives way to a model that fits beside it, and nobody is ended for it."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fakes.weights import write_sparse_weights
from faults.support import FAST, Background, ClientProcess, Fake, ask, eventually

from langchain_car_vllm.server import ServerSpec, directory_of, lease, running_servers, stop_server
from langchain_car_vllm.server.state import State, read_state

GB = 10**9
BUDGET = 12
CONFIG = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "num_hidden_layers": 40,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "hidden_size": 1024,
}
WINDOWS = {
    **CONFIG,
    "num_hidden_layers": 48,
    "sliding_window": 1024,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
}


@pytest.fixture
def models(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> list[ServerSpec]:
    """Four models that need 3 GB each and would take more than half of 12 for company."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(BUDGET))
    specs = []
    for number in range(4):
        folder = fake.root / f"model{number}"
        shutil.copytree(fake.model, folder)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write_sparse_weights(folder / "model.safetensors", GB)
        specs.append(fake.spec(source=str(folder), served_name=str(folder)))
    return specs


def use(spec: ServerSpec) -> State:
    with lease(spec, policy=FAST) as held:
        assert ask(held.endpoint)
        return state_of(spec)


def state_of(spec: ServerSpec) -> State:
    state = read_state(directory_of(spec).state)
    assert state is not None
    return state


def set_aside() -> list[int]:
    return [state.reservation for _, state in running_servers()]


@contextmanager
def request_under_way(spec: ServerSpec, tokens: int) -> Iterator[None]:
    with lease(spec, policy=FAST) as held:
        assert held.gate.try_enter(tokens, arrives_late=False)
        yield
        held.gate.leave(is_over=True)


def test_models_that_fit_side_by_side_stay(models: list[ServerSpec]):
    """The first gives room away and goes on; each keeps the context that was promised."""
    first = use(models[0])
    assert first.reservation > BUDGET * GB / 2
    for spec in models[1:3]:
        use(spec)
        assert sum(set_aside()) <= BUDGET * GB
    smaller = state_of(models[0])
    assert (smaller.phase, smaller.generation) == ("ready", 1)
    assert smaller.reservation < first.reservation
    assert smaller.serving.kv_room_tokens < first.serving.kv_room_tokens
    assert smaller.reservation >= smaller.least
    assert {state_of(spec).serving.max_input_tokens for spec in models[:3]} == {4096}
    room = directory_of(models[0]).memory_room.read_text()
    assert int(room) == smaller.reservation
    assert use(models[0]).generation == 1


def test_one_that_fits_beside_nobody_still_ends_the_one_unused_for_longest(
    models: list[ServerSpec],
):
    """Where less company would not do, one idle server goes, and only one."""
    for spec in models:
        use(spec)
        assert sum(set_aside()) <= BUDGET * GB
    assert state_of(models[0]).reason == "evicted"
    assert [state_of(spec).phase for spec in models[1:]] == ["ready"] * 3


def test_requests_under_way_are_waited_for(models: list[ServerSpec]):
    """They end first; requests that come later keep to the smaller room at once."""
    first = use(models[0])
    room = first.serving.kv_room_tokens
    assert room is not None
    with lease(models[0], policy=FAST) as large, lease(models[0], policy=FAST) as next_one:
        assert large.gate.try_enter(3 * room // 4, arrives_late=False)
        use(models[1])
        call = Background(lambda: use(models[2]))
        eventually(lambda: state_of(models[0]).serving.kv_room_tokens < room, "the smaller room")
        assert not next_one.gate.try_enter(3 * room // 4, arrives_late=False)
        assert state_of(models[0]).reservation == first.reservation
        assert call.is_alive()
        large.gate.leave(is_over=True)
        call.result()
        assert state_of(models[0]).reservation < first.reservation
        assert sum(set_aside()) <= BUDGET * GB
        eventually(lambda: next_one.gate.try_enter(100, arrives_late=False), "the gate to open")
        next_one.gate.leave(is_over=True)


def test_room_is_taken_back(models: list[ServerSpec]):
    """Once the other models are gone, company is set aside again."""
    first = use(models[0])
    for spec in models[1:3]:
        use(spec)
    for spec in models[1:3]:
        stop_server(directory_of(spec), policy=FAST)
    eventually(lambda: state_of(models[0]).reservation == first.reservation, "the room")
    assert state_of(models[0]).serving == first.serving
    assert int(directory_of(models[0]).memory_room.read_text()) == first.reservation


def test_one_that_had_to_start_with_less_is_not_kept_small(models: list[ServerSpec]):
    """Once the one before it is gone, it has as much room for company as if it were first."""
    first = use(models[0])
    small = use(models[1])
    assert small.serving.kv_room_tokens < first.serving.kv_room_tokens
    stop_server(directory_of(models[0]), policy=FAST)
    room = first.serving.kv_room_tokens
    eventually(lambda: state_of(models[1]).serving.kv_room_tokens == room, "the room")
    large = state_of(models[1])
    assert large.serving == first.serving
    assert large.generation == 1
    assert int(directory_of(models[1]).memory_room.read_text()) == large.reservation


def test_models_that_fit_with_fewer_earlier_prompts_stay(
    models: list[ServerSpec], monkeypatch: pytest.MonkeyPatch
):
    """The later one keeps fewer of them, and nobody is loaded again when they take turns."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "6.5")
    for spec in models[:2] * 2:
        use(spec)
    assert {(state.phase, state.generation) for _, state in running_servers()} == {("ready", 1)}
    assert len(set_aside()) == 2


def test_company_goes_to_the_server_whose_requests_wait(models: list[ServerSpec]):
    """Others give it that have at most one, and take nothing back while they have no more."""
    first = use(models[0])
    room = use(models[1]).serving.kv_room_tokens
    assert room is not None
    with request_under_way(models[0], 100), request_under_way(models[1], room // 2):
        with lease(models[1], policy=FAST) as second:
            tokens = room // 2 + 100
            assert not second.gate.try_enter(tokens, arrives_late=False)
            eventually(lambda: second.gate.try_enter(tokens, arrives_late=False), "company")
            second.gate.leave(is_over=True)
        assert state_of(models[1]).serving.kv_room_tokens == first.serving.kv_room_tokens
    given = state_of(models[0])
    assert (given.phase, given.generation) == ("ready", 1)
    assert given.least <= given.reservation < first.reservation
    assert given.serving.max_input_tokens == first.serving.max_input_tokens
    assert sum(set_aside()) <= BUDGET * GB


def test_company_is_left_to_a_server_that_has_some(models: list[ServerSpec]):
    """An idle one takes nothing of what becomes free; one with requests side by side does."""
    for spec in models[:3]:
        use(spec)
    idle, busy, leaving = models[:3]
    before = state_of(idle), state_of(busy)
    with request_under_way(busy, 100), request_under_way(busy, 100):
        stop_server(directory_of(leaving), policy=FAST)
        most = before[1].reservation
        eventually(lambda: state_of(busy).reservation > most, "the room")
    assert state_of(idle).reservation == before[0].reservation


def test_company_that_nobody_wants_is_taken(models: list[ServerSpec]):
    """A long answer to a lone program may need it, too."""
    for spec in models[:3]:
        use(spec)
    stop_server(directory_of(models[2]), policy=FAST)
    eventually(lambda: BUDGET * GB - sum(set_aside()) < GB / 4, "the room to be taken")
    assert {state.phase for _, state in running_servers()} == {"ready"}


def test_rules_are_wide_again_after_a_start_that_gave_up(fake: Fake, models: list[ServerSpec]):
    """Of a model too whose conversations each have windows of their own."""
    (fake.root / "model0" / "config.json").write_text(json.dumps(WINDOWS))
    room = use(models[0]).serving.kv_room_tokens
    assert room is not None
    with request_under_way(models[0], 3 * room // 4):
        use(models[1])
        before = state_of(models[0])
        start = ClientProcess(
            fake,
            source=models[2].source,
            served_name=models[2].served_name,
            policy=dataclasses.replace(FAST, abandoned_patience=0.1),
        )
        eventually(lambda: state_of(models[0]).serving != before.serving, "the smaller room")
        start.kill()
        eventually(lambda: state_of(models[2]).phase == "stopped", "the end of the start")
        assert state_of(models[0]).reservation == before.reservation
    eventually(lambda: state_of(models[0]).serving == before.serving, "the room that it has")


HOLD_TURN = """
    from langchain_car_vllm.server import directory_of
    from langchain_car_vllm.server.locks import open_lock, try_exclusive
    assert try_exclusive(open_lock(directory_of(spec).turn_lock))
"""


@pytest.mark.parametrize("moment", ["", HOLD_TURN], ids=["answer", "turn"])
def test_suspended_program_keeps_no_company(fake: Fake, models: list[ServerSpec], moment: str):
    """Its request counts no more after a while: the server goes on with less and is not ended.

    So it is where it was suspended in the moment in which it decided who may send.
    """
    first = use(models[0])
    tokens = 3 * (first.serving.kv_room_tokens or 0) // 4
    client = ClientProcess(
        fake,
        source=models[0].source,
        served_name=models[0].served_name,
        then=f"""assert held.gate.try_enter({tokens}, arrives_late=False)
{moment}
    print("entered", flush=True)""",
    )
    assert [client.read() for _ in range(3)] == ["began", "leased 1", "entered"]
    use(models[1])
    os.kill(client.pid, signal.SIGSTOP)
    use(models[2])
    assert {state_of(spec).generation for spec in models[:3]} == {1}
    assert {state_of(spec).phase for spec in models[:3]} == {"ready"}
    os.kill(client.pid, signal.SIGCONT)
    client.finish()


def test_start_does_not_wait_for_company_for_ever(models: list[ServerSpec]):
    """A server that does not give it for long makes room as if it had none to give."""
    room = use(models[0]).serving.kv_room_tokens
    assert room is not None
    policy = dataclasses.replace(FAST, drain_patience=0.2)

    def start() -> None:
        with lease(models[2], policy=policy):
            pass

    with request_under_way(models[0], 3 * room // 4), request_under_way(models[1], 100):
        call = Background(start)
        eventually(lambda: state_of(models[0]).is_wanted, "the wish that it ends")
        assert state_of(models[2]).phase == "queued"
    call.result()
    assert state_of(models[2]).phase == "ready"


def test_loading_server_gives_its_company_to_a_start(fake: Fake, models: list[ServerSpec]):
    """Nobody waits out another's load for room that is not used yet."""
    fake.switch(load_gate=fake.gate("load"))
    large = Background(lambda: use(models[0]))
    first = fake.wait_for_phase("load", source=models[0].source, served_name=models[0].served_name)
    eventually(fake.gate_is_awaited, "the load")
    fake.switch()
    small = [use(spec) for spec in models[1:3]]
    assert state_of(models[0]).phase == "load"
    fake.open_gate("load")
    ready = large.result()
    assert ready.reservation < first.reservation
    assert ready.serving.kv_room_tokens < first.serving.kv_room_tokens
    assert {state.generation for state in (*small, ready)} == {1}
    room = directory_of(models[0]).memory_room
    eventually(room.exists, "its limit")
    assert int(room.read_text()) == state_of(models[0]).reservation
