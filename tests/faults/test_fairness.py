"""Memory that several models want: nobody is sent away in vain, and everybody has a turn."""

import dataclasses
import os
import signal
import threading
import time

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, MakeModel, ask, eventually

from langchain_car_vllm.errors import ServerStoppedError
from langchain_car_vllm.server import ServerSpec, directory_of, lease
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.state import State, read_state


def state_of(spec: ServerSpec) -> State:
    state = read_state(directory_of(spec).state)
    assert state is not None
    return state


def use(spec: ServerSpec) -> int:
    with lease(spec, policy=FAST) as held:
        assert ask(held.endpoint)
        return held.endpoint.generation


def hold(fake: Fake, spec: ServerSpec) -> ClientProcess:
    client = ClientProcess(fake, source=spec.source, served_name=spec.served_name)
    assert client.read() == "began"
    assert client.read().startswith("leased")
    return client


def wait_for_victims(spec: ServerSpec, *victims: ServerSpec) -> None:
    keys = tuple(directory_of(victim).key for victim in victims)

    def is_queued() -> bool:
        state = read_state(directory_of(spec).state)
        return state is not None and state.phase == "queued" and state.victims == keys

    eventually(is_queued, "the queue")


def test_idle_server_that_cannot_make_enough_room_stays(fake: Fake, make_model: MakeModel):
    """A start that waits for a busy server sends no small one away in the meantime."""
    big, small, third = make_model(1.7), make_model(0.05), make_model(1.0)
    client = hold(fake, big)
    use(small)
    call = Background(lambda: use(third))
    wait_for_victims(third, big)
    client.finish()
    call.result()
    assert state_of(small).generation == 1
    assert state_of(small).phase == "ready"
    assert state_of(big).reason == "evicted"


def test_start_that_fits_waits_for_nobody(fake: Fake, make_model: MakeModel):
    """Neither a queued start nor a victim that saves its cache holds up what fits beside them."""
    first, second, third, small = (make_model(gb) for gb in (1.0, 0.7, 1.0, 0.05))
    fake.switch(save_gate=fake.gate("save"))
    patient = dataclasses.replace(FAST, stop_grace=60.0, save_stall=60.0, save_limit=60.0)
    with lease(first, policy=patient):
        pass
    use(second)
    call = Background(lambda: use(third))
    directory = directory_of(first)
    eventually(lambda: state_of(first).phase == "stopping", "the eviction")
    assert use(small) == 1
    assert state_of(first).phase == "stopping"
    fake.open_gate("save")
    call.result()
    with opened_lock(directory.supervisor_lock) as lock:
        assert not is_held(lock)


def test_third_model_has_its_turn_while_two_are_kept_busy(fake: Fake, make_model: MakeModel):
    """Two overlapping users of each of two models never leave them idle, yet the third starts."""
    models = [make_model(1.0) for _ in range(3)]
    over = threading.Event()
    answers = [0, 0]
    served_third = threading.Event()

    def keep_busy(number: int, delay: float) -> None:
        time.sleep(delay)
        while not over.is_set():
            with lease(models[number], policy=FAST) as held:
                ask(held.endpoint)
                answers[number] += 1
                over.wait(0.4)

    users = [
        Background(lambda n=number, d=delay: keep_busy(n, d))
        for number in range(2)
        for delay in (0.0, 0.2)
    ]
    eventually(lambda: min(answers) > 2, "the first answers")

    def use_third() -> None:
        use(models[2])
        served_third.set()

    call = Background(use_third)
    try:
        eventually(served_third.is_set, "the third model's turn")
        before = list(answers)
        eventually(lambda: all(a > b for a, b in zip(answers, before, strict=True)), "both again")
    finally:
        over.set()
    call.result()
    for user in users:
        user.result()


def test_starts_are_served_in_their_order(fake: Fake, make_model: MakeModel):
    """A later start never takes the memory that an earlier one waits for."""
    held, early, late = make_model(2.0), make_model(2.0), make_model(2.0)
    client = hold(fake, held)
    order: list[str] = []
    calls = []
    for name, spec in (("early", early), ("late", late)):

        def call(name: str = name, spec: ServerSpec = spec) -> None:
            with lease(spec, policy=FAST):
                order.append(name)

        calls.append(Background(call))
        eventually(lambda spec=spec: state_if_queued(spec), "the queue")
    client.finish()
    for waiting in calls:
        waiting.result()
    assert order == ["early", "late"]


def state_if_queued(spec: ServerSpec) -> bool:
    state = read_state(directory_of(spec).state)
    return state is not None and state.queued_at is not None


def test_request_within_a_request_does_not_wait_for_its_own_end(fake: Fake, make_model: MakeModel):
    """Who streams from a model that is to make room may ask it again meanwhile."""
    first, second = make_model(2.0), make_model(2.0)
    with lease(first, policy=FAST):
        call = Background(lambda: use(second))
        eventually(lambda: state_of(first).is_wanted, "the wish")
        other = Background(lambda: use(first))
        assert use(first) == 1
    call.result()
    assert other.result() == 2


def test_wish_of_a_start_that_is_gone_is_forgotten(fake: Fake, make_model: MakeModel):
    """Where nobody wants the memory any more, new requests are served again."""
    first, second = make_model(2.0), make_model(2.0)
    with lease(first, policy=FAST):
        waiting = ClientProcess(
            fake,
            policy=dataclasses.replace(FAST, abandoned_patience=0.1),
            source=second.source,
            served_name=second.served_name,
        )
        eventually(lambda: state_of(first).is_wanted, "the wish")
        waiting.kill()
        eventually(lambda: not state_of(first).is_wanted, "the end of the wish")
        other = Background(lambda: use(first))
        assert other.result() == 1


def test_suspended_client_gives_its_memory_back(fake: Fake, make_model: MakeModel):
    """Who was suspended in the middle of a request keeps nobody waiting forever."""
    first, second = make_model(2.0), make_model(2.0)
    client = hold(fake, first)
    os.kill(client.pid, signal.SIGSTOP)
    use(second)
    assert state_of(first).reason == "evicted"
    os.kill(client.pid, signal.SIGCONT)
    client.finish()


def test_suspended_client_beside_one_that_goes_on_is_left_alone(fake: Fake, make_model: MakeModel):
    """Nobody is cut off who still works."""
    first, second = make_model(2.0), make_model(2.0)
    client = hold(fake, first)
    with lease(first, policy=FAST) as held:
        os.kill(client.pid, signal.SIGSTOP)
        call = Background(lambda: use(second))
        eventually(lambda: state_of(first).is_wanted, "the wish")
        time.sleep(FAST.suspended_patience * 3)
        assert ask(held.endpoint)
    call.result()
    assert held.explain() is not None
    os.kill(client.pid, signal.SIGCONT)
    client.finish()


@pytest.mark.parametrize("role", ["waiting", "victim"])
def test_suspended_supervisor_blocks_no_other_start(fake: Fake, make_model: MakeModel, role: str):
    """Neither a queued start whose supervisor is suspended nor a suspended victim is waited for."""
    first, second, third = make_model(2.0), make_model(2.0), make_model(2.0)
    client = hold(fake, first)
    waiting = ClientProcess(fake, source=second.source, served_name=second.served_name)
    wait_for_victims(second, first)
    victim = state_of(second if role == "waiting" else first).supervisor.pid
    waiting_client = waiting.pid
    os.kill(waiting_client, signal.SIGSTOP)  # or it would wake its supervisor
    os.kill(victim, signal.SIGSTOP)
    call = Background(lambda: use(third))
    eventually(lambda: state_if_queued(third), "the queue")
    client.finish()
    if role == "waiting":
        call.result()
    os.kill(victim, signal.SIGCONT)
    os.kill(waiting_client, signal.SIGCONT)
    waiting.finish()
    call.result()


def test_server_killed_while_loading_is_started_once_more(fake: Fake, make_model: MakeModel):
    """One stray kill costs a second start, not the call."""
    spec = make_model(0.1)
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: use(spec))
    first = eventually(fake.starts, "the start")[0]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(fake.starts()) == 2, "the second start")
    fake.open_gate("load")
    assert call.result() == 1


def test_server_without_memory_is_started_once_more_with_its_neighbours_gone(
    fake: Fake, make_model: MakeModel
):
    """The budget said that both fit; the machine knew better."""
    neighbour, spec = make_model(0.1), make_model(0.1)
    use(neighbour)
    fake.switch(memory_of=str(directory_of(neighbour).server_lock))
    assert use(spec) == 1
    assert len(fake.starts()) == 3
    assert state_of(neighbour).reason == "evicted"


def test_stop_of_a_server_that_was_cut_off_is_told(fake: Fake, make_model: MakeModel):
    """A suspended client that goes on learns that its server was stopped, and may try again."""
    first, second = make_model(2.0), make_model(2.0)
    then = (
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP);"
        " error = held.explain(); print(type(error).__name__, error.is_retryable, flush=True)"
    )
    client = ClientProcess(fake, then, source=first.source, served_name=first.served_name)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    use(second)
    os.kill(client.pid, signal.SIGCONT)
    assert client.read() == f"{ServerStoppedError.__name__} True"
    client.finish()
