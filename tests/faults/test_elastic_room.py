"""Room for company: it gives way to a model that fits beside it, and nobody is ended for it."""

import json
import shutil

import pytest
from fakes.weights import write_sparse_weights
from faults.support import FAST, Background, Fake, ask, eventually

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
    use(models[1])
    room = first.serving.kv_room_tokens
    assert room is not None
    with lease(models[0], policy=FAST) as large, lease(models[0], policy=FAST) as next_one:
        assert large.gate.try_enter(3 * room // 4, arrives_late=False)
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
