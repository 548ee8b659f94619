"""Memory: models share a budget; idle ones go, busy ones are waited for, nobody is deadlocked."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from fakes.weights import write_sparse_weights
from faults.support import (
    FAST,
    Background,
    ClientProcess,
    Fake,
    altered_supervisor,
    ask,
    eventually,
    lose_supervisor,
    unguarded,
)

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import (
    InsufficientMemoryError,
    ServerCrashedError,
    ServerStartingError,
)
from langchain_car_vllm.server import ServerSpec, directory_of, lease, running_servers
from langchain_car_vllm.server.state import read_state

ROOM_FOR_TWO = "2.6"


@pytest.fixture
def models(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> list[ServerSpec]:
    """Three models of 1 GB each, with room for two; the files are sparse."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", ROOM_FOR_TWO)
    specs = []
    for number in range(3):
        folder = fake.root / f"model{number}"
        shutil.copytree(fake.model, folder)
        write_sparse_weights(folder / "model.safetensors", 1_000_000_000)
        specs.append(fake.spec(source=str(folder), served_name=str(folder)))
    return specs


def names() -> set[str]:
    return {state.served_name[-1] for _, state in running_servers()}


def use(spec: ServerSpec) -> None:
    with lease(spec, policy=FAST) as held:
        assert ask(held.endpoint)


def users(fake: Fake, specs: list[ServerSpec], **settings: object) -> list[ClientProcess]:
    """Return processes that use one model each."""
    clients = [
        ClientProcess(fake, source=spec.source, served_name=spec.served_name, **settings)
        for spec in specs
    ]
    for client in clients:
        assert client.read() == "began"
        assert client.read() == "leased 1"
    return clients


def test_least_recently_used_idle_server_goes(fake: Fake, models: list[ServerSpec]):
    """A third model takes the place of the one that was used longest ago."""
    use(models[0])
    use(models[1])
    use(models[0])
    use(models[2])
    assert names() == {"0", "2"}
    state = read_state(directory_of(models[1]).state)
    assert state is not None
    assert state.reason == "evicted"


def test_server_that_is_kept_for_ever_goes_last(fake: Fake, models: list[ServerSpec]):
    """keep_alive -1 is no shield against eviction, but it comes last."""
    use(dataclasses.replace(models[0], keep_alive=-1.0))
    use(models[1])
    use(models[2])
    assert names() == {"0", "2"}


def test_model_that_can_never_fit_is_refused_with_the_numbers(
    fake: Fake, models: list[ServerSpec], monkeypatch: pytest.MonkeyPatch
):
    """No waiting for what cannot happen."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "0.5")
    with pytest.raises(InsufficientMemoryError, match=r"needs 1\.\d GB.* 0\.5 GB"):
        use(models[0])


def test_busy_servers_are_waited_for_visibly(fake: Fake, models: list[ServerSpec]):
    """The third model waits until one of the two busy ones is released."""
    clients = users(fake, models[:2], keep_alive=0.0)
    call = Background(lambda: use(models[2]))
    state = fake.wait_for_phase(
        "queued", source=models[2].source, served_name=models[2].served_name
    )
    while not state.shortfall:
        state = fake.state(source=models[2].source, served_name=models[2].served_name)
    waited_for = directory_of(models[0]).key in state.victims
    assert ("waiting for" in state.detail, len(state.victims)) == (True, 1)
    assert (f"`{models[0].served_name}`" in state.detail) == waited_for
    assert (f"`{models[1].served_name}`" in state.detail) != waited_for
    clients[0].finish()
    call.result()
    clients[1].finish()


def test_stream_whose_consumer_calls_a_third_model_is_refused(fake: Fake, models: list[ServerSpec]):
    """A process that holds the room itself would wait forever: it is told so instead."""
    with (
        lease(models[0], policy=FAST),
        lease(models[1], policy=FAST),
        pytest.raises(InsufficientMemoryError, match="this process") as caught,
    ):
        use(models[2])
    assert caught.value.is_retryable
    use(models[2])


def test_own_stream_is_no_obstacle_where_another_can_go(fake: Fake, models: list[ServerSpec]):
    """With a stream on one of two models, the idle other one makes room."""
    use(models[1])
    with lease(models[0], policy=FAST) as held:
        use(models[2])
        assert ask(held.endpoint)
    assert names() == {"0", "2"}


def test_context_and_cache_count(fake: Fake, models: list[ServerSpec]):
    """The reservation holds what reading takes, the conversations and the server's prompt cache."""
    config = {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 512,
    }
    (fake.root / "model0" / "config.json").write_text(json.dumps(config))
    with lease(models[0], policy=FAST):
        state = read_state(directory_of(models[0]).state)
    assert state is not None
    weights, prefill, cache, token = 1_000_000_000, 1_000_000_000, 256_000_000, 2 * 10 * 4 * 64 * 2
    room = state.serving.kv_room_tokens
    assert room is not None
    assert room >= state.serving.max_input_tokens == 4096
    assert state.reservation == weights + prefill + cache + room * token


def test_wrong_budget_is_a_clear_error(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """A budget that is not a number names the variable."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "lots")
    with pytest.raises(ValueError, match="CAR_VLLM_MLX_MEMORY_GB"):
        lease(fake.spec(), policy=FAST).__enter__()


def test_queued_supervisor_that_is_killed_is_replaced(fake: Fake, models: list[ServerSpec]):
    """Who waits for memory goes on waiting with another supervisor."""
    clients = users(fake, models[:2], keep_alive=0.0)
    call = Background(lambda: use(models[2]))
    changes = {"source": models[2].source, "served_name": models[2].served_name}
    eventually(lambda: fake.wait_for_phase("queued", **changes).shortfall, "the queue")
    os.kill(fake.state(**changes).supervisor.pid, signal.SIGKILL)
    eventually(lambda: fake.state(**changes).generation == 2, "the next supervisor")
    for client in clients:
        client.finish()
    call.result()


def test_memory_of_a_lost_server_is_got_back(fake: Fake, models: list[ServerSpec]):
    """A server that outlived its supervisor is ended where another model needs its memory."""
    unguarded(fake)
    use(models[1])
    with lease(models[0], policy=FAST) as held:
        pass
    state = read_state(directory_of(models[0]).state)
    assert state is not None
    assert state.server is not None
    lose_supervisor(state)
    use(models[2])
    assert not state.server.find()
    left = read_state(directory_of(models[0]).state)
    assert left is not None
    assert (left.phase, left.reason) == ("stopped", "lost")
    assert names() == {"1", "2"}
    assert isinstance(held.explain(), ServerCrashedError)


def test_stream_whose_consumer_calls_two_other_models(
    fake: Fake, models: list[ServerSpec], monkeypatch: pytest.MonkeyPatch
):
    """The caller of the chat model: the stream goes on, the other two take turns in its shadow."""
    chats = [ChatVllmMlx(model=spec.source, max_tokens=3) for spec in models]
    text = ""
    for chunk in chats[0].stream("hi"):
        text += chunk.text
        for chat in chats[1:]:
            assert chat.invoke("hi").text.strip() == "tok0 tok1 tok2"
    assert text.strip() == "tok0 tok1 tok2"
    state = read_state(directory_of(models[0]).state)
    assert state is not None
    assert state.generation == 1


def test_queue_is_left_when_nobody_waits_any_more(fake: Fake, models: list[ServerSpec]):
    """A server that nobody waits for does not stay in the queue for memory."""
    clients = users(fake, models[:2])
    changes = {"source": models[2].source, "served_name": models[2].served_name}
    policy = dataclasses.replace(FAST, abandoned_patience=0.1)
    waiting = ClientProcess(fake, policy=policy, **changes)
    eventually(lambda: fake.wait_for_phase("queued", **changes).shortfall, "the queue")
    waiting.kill()
    fake.wait_until_unsupervised(**changes)
    assert fake.state(**changes).phase == "stopped"
    for client in clients:
        client.finish()


def test_start_whose_caller_ran_out_of_time_goes_on_to_wait(fake: Fake, models: list[ServerSpec]):
    """It was promised: the start keeps its place in the queue, and serves once there is room."""
    clients = users(fake, models[:2], keep_alive=0.0)
    changes = {"source": models[2].source, "served_name": models[2].served_name}
    policy = dataclasses.replace(FAST, abandoned_patience=0.1)
    waiting = ClientProcess(fake, policy=policy, **changes)
    eventually(lambda: fake.wait_for_phase("queued", **changes).shortfall, "the queue")
    with pytest.raises(ServerStartingError, match="start continues"):
        lease(models[2], policy=policy, startup_timeout=0.1).__enter__()
    waiting.kill()
    looks = fake.directory(**changes).state
    for _ in range(20):
        looks.unlink()
        eventually(looks.exists, "its next look")
    clients[0].finish()
    assert fake.wait_for_phase("ready", **changes).generation == 1
    clients[1].finish()


def test_raised_budget_ends_the_wait(
    fake: Fake, models: list[ServerSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A container's limit may be changed while it runs."""
    monkeypatch.delenv("CAR_VLLM_MLX_MEMORY_GB")
    limit = tmp_path / "limit"
    limit.write_text(str(3 * 10**9))
    code = (
        "import langchain_car_vllm.server.memory as memory\n"
        f"memory.machine_memory = lambda: int(open({str(limit)!r}).read())"
    )
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(altered_supervisor(tmp_path, code)))
    clients = users(fake, models[:1])
    call = Background(lambda: use(models[1]))
    changes = {"source": models[1].source, "served_name": models[1].served_name}
    eventually(lambda: fake.wait_for_phase("queued", **changes).shortfall, "the queue")
    limit.write_text(str(30 * 10**9))
    call.result()
    assert clients[0].finish() == "released\n"
