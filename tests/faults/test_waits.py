"""Waiting for memory without a deadlock, and files that vanish or cannot be written."""

import dataclasses
import shutil
import subprocess
import sys

import pytest
from faults.support import (
    FAST,
    PATIENCE,
    Background,
    ClientProcess,
    Fake,
    MakeModel,
    ask,
    can_mount,
    eventually,
    fill,
    lose_supervisor,
    unguarded,
)

from langchain_car_vllm.cli.machine_checks import CHECKS
from langchain_car_vllm.errors import CarVllmError, StateDirectoryError
from langchain_car_vllm.server import ServerSpec, directory_of, lease, running_servers
from langchain_car_vllm.server.state import read_state


@pytest.fixture
def models(make_model: MakeModel) -> list[ServerSpec]:
    """Four models, with room for two."""
    return [make_model(1.0) for _ in range(4)]


def test_two_processes_that_each_hold_one_model_and_want_a_third(fake: Fake, models):
    """Two agents, each inside a stream of one model, both want another: somebody is told."""
    wants = [
        f"""
    from langchain_car_vllm.errors import ServerStartingError, InsufficientMemoryError
    sys.stdin.readline()
    other = ServerSpec({m.source!r}, {m.served_name!r}, keep_alive=60.0)
    try:
        with lease(other, policy=policy, startup_timeout=60): print('third', flush=True)
    except (ServerStartingError, InsufficientMemoryError) as error:
        print(type(error).__name__, flush=True)"""
        for m in models[2:]
    ]
    clients = [
        ClientProcess(fake, then, source=spec.source, served_name=spec.served_name)
        for then, spec in zip(wants, models[:2], strict=True)
    ]
    for client in clients:
        assert client.read() == "began"
        assert client.read() == "leased 1"
    for client in clients:
        client._process.stdin.write("\n")
        client._process.stdin.flush()
    said = [client.read() for client in clients]
    for client in clients:
        client.finish()
    assert "ServerStartingError" not in said, said


def test_threads_of_one_process_take_turns_in_memory(fake: Fake, models):
    """Threads that use one model each are all answered: none holds one and waits for another."""
    policy = dataclasses.replace(FAST, own_memory=20.0)
    fake.switch(token_gate=fake.gate("token"))

    def use(spec):
        with lease(spec, policy=policy) as held:
            return ask(held.endpoint)

    first = [Background(lambda spec=spec: use(spec)) for spec in models[:2]]
    eventually(lambda: len([s for _, s in running_servers() if s.phase == "ready"]) == 2, "two")
    third = Background(lambda: use(models[2]))
    directory = directory_of(models[2])

    def queued() -> bool:
        state = read_state(directory.state)
        return bool(state and state.shortfall)

    eventually(queued, "the third to queue")
    fake.open_gate("token")
    for call in first:
        assert call.result()
    assert third.result()


@pytest.mark.parametrize("what", ["state.json", "clients"])
def test_removed_file_of_a_ready_server(fake: Fake, what: str):
    """A file that somebody removed is made again, or the call ends with an error."""
    with lease(fake.spec(), policy=FAST) as held:
        path = fake.directory().path / what
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        eventually(path.exists, f"{what} to be made again")
        with lease(fake.spec(), policy=FAST) as again:
            assert again.endpoint.generation == held.endpoint.generation == 1


@can_mount
def test_full_disk_says_what_to_do_at_a_later_stage(fake: Fake, mount, monkeypatch):
    """A disk that fills up while the model loads is told with the right hint."""
    folder = mount("size=1m")
    monkeypatch.setenv("CAR_HOME", str(folder))
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST, startup_timeout=60).__enter__())
    eventually(fake.starts, "the start")
    fill(folder)
    fake.open_gate("load")
    with pytest.raises(CarVllmError) as caught:
        call.result()
    (folder / "filler").unlink()
    fake.wait_until_unsupervised()
    assert "disk space" in (caught.value.hint or "")


@can_mount
@pytest.mark.parametrize("is_lost", [True, False])
@pytest.mark.parametrize("command", ["stop", "uninstall"])
def test_what_frees_space_works_on_a_full_disk(
    fake: Fake, mount, monkeypatch, *, is_lost: bool, command: str
):
    """Nobody is left; that it cannot be written down undoes nothing."""
    folder = mount("size=2m")
    home = folder / "car"
    monkeypatch.setenv("CAR_HOME", str(home))
    unguarded(fake)
    with lease(fake.spec(), policy=FAST):
        state = fake.state()
    if is_lost:
        lose_supervisor(state)
        fake.wait_until_unsupervised()
    fill(folder)
    with pytest.raises(StateDirectoryError, match="No space") as caught:
        dict(CHECKS)["home"]()
    assert "free some disk space" in (caught.value.hint or "")
    words = ["stop", "--all"] if command == "stop" else ["uninstall", "--yes"]
    done = subprocess.run(
        [sys.executable, "-m", "langchain_car_vllm", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert state.server is not None
    assert not state.server.find()
    assert (home / "run").exists() == (command == "stop")
    (folder / "filler").unlink()
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
