"""A server that is kept in memory, as `car-vllm serve` does, while nobody asks anything of it."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.weights import weights_of
from faults.support import FAST, ClientProcess, Fake, MakeModel, ask, eventually

from langchain_car_vllm.server import ServerSpec, directory_of, lease, running_servers, stop_server
from langchain_car_vllm.server.client.keeper import Keeper
from langchain_car_vllm.server.client.process_lease import process_leases
from langchain_car_vllm.server.client_record import keepers, requesters
from langchain_car_vllm.server.state import read_state


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """What keeps a server as `car-vllm serve` does."""
    with closing(Keeper(0.0)) as keeper:
        yield keeper


@pytest.fixture
def models(make_model: MakeModel) -> list[ServerSpec]:
    """Three models, with room for two; nobody wants them to stay."""
    return [dataclasses.replace(make_model(1.0), keep_alive=0.0) for _ in range(3)]


def use(spec: ServerSpec, keeper: Keeper | None = None) -> None:
    with lease(spec, policy=FAST, keeper=keeper, startup_timeout=30) as held:
        assert ask(held.endpoint)


def names() -> set[str]:
    return {state.served_name[-1] for _, state in running_servers()}


def test_it_stays_until_it_is_let_go(fake: Fake, keeper: Keeper):
    """Whatever the requests say; nobody seems to be served meanwhile."""
    spec, clients = fake.spec(keep_alive=0.0), fake.directory().clients
    for _ in range(2):
        use(spec, keeper)
    assert (keepers(clients), requesters(clients)) == ([os.getpid()], [])
    client = ClientProcess(fake, keep_alive=0.0)
    assert [client.read() for _ in range(2)] == ["began", "leased 1"]
    client.kill()
    use(spec)
    assert fake.state().phase == "ready"
    keeper.close()
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"
    assert len(fake.starts()) == 1


def test_it_goes_with_whoever_kept_it(fake: Fake):
    """The kernel drops its mark however the program dies."""
    client = ClientProcess(
        fake,
        "from langchain_car_vllm.server.client.keeper import Keeper\n"
        "    with lease(spec, policy=policy, keeper=Keeper(0.0)): pass",
        between_requests=True,
        keep_alive=0.0,
    )
    assert [client.read() for _ in range(3)] == ["began", "leased 1", "released"]
    assert keepers(fake.directory().clients) == [client.pid]
    client.kill()
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


def test_it_makes_room_and_is_started_and_kept_again(models: list[ServerSpec], keeper: Keeper):
    """Two others need the memory; the next request starts it again where one of them is idle."""
    use(models[0], keeper)
    with lease(models[1], policy=FAST):
        use(models[2])
        state = read_state(directory_of(models[0]).state)
        assert state is not None
        assert (state.phase, state.reason) == ("stopped", "evicted")
        use(models[0], keeper)
        assert names() == {"0", "1"}
    eventually(lambda: names() == {"0"}, "the other to stop for idleness")
    assert keepers(directory_of(models[0]).clients) == [os.getpid()]


def test_it_goes_last(models: list[ServerSpec], keeper: Keeper):
    """As one with keep_alive -1, though it was used longest ago."""
    use(models[0], keeper)
    use(ServerSpec(models[1].source, models[1].served_name, keep_alive=60.0))
    with lease(models[2], policy=FAST):
        assert names() == {"0", "2"}


def test_what_is_only_kept_is_no_use_of_this_process(models: list[ServerSpec]):
    """Nothing that it asks for is nested in it, or waits for itself."""
    with closing(Keeper(0.0)) as first, closing(Keeper(0.0)) as second:
        use(models[0], first)
        use(models[1], second)
        assert not any(held.holders for held in process_leases())
        use(models[2])


def test_new_weights_are_loaded_although_the_server_is_kept(fake: Fake, keeper: Keeper):
    """Whoever trains again while `car-vllm serve` runs gets answers of the new weights."""
    use(fake.spec(), keeper)
    weights = fake.model / "model.safetensors"
    weights.write_bytes(weights_of(128))
    os.utime(weights, (1e9, 1e9))
    use(fake.spec(), keeper)
    assert len(fake.starts()) == 2
    assert keepers(fake.directory().clients) == [os.getpid()]


def test_what_is_kept_is_what_the_last_request_led_to(fake: Fake, keeper: Keeper):
    """A link was led elsewhere: the new weights stay, and the old ones leave the memory."""
    versions = [fake.root / "v1", fake.root / "v2"]
    for version in versions:
        shutil.copytree(fake.model, version)
    link = fake.root / "current"
    spec = fake.spec(source=str(link), served_name=str(link), keep_alive=0.0)
    directories = []
    for version in versions:
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        for _ in range(2):
            use(spec, keeper)
        directories.append(directory_of(spec))
    eventually(lambda: len(running_servers()) == 1, "the former one to stop for idleness")
    assert [keepers(directory.clients) for directory in directories] == [[], [os.getpid()]]
    assert len(fake.starts()) == 2


def test_it_is_kept_again_after_a_stop_or_a_loss_of_its_folder(fake: Fake, keeper: Keeper):
    """Whatever was done to it: the next request starts it, and it stays."""
    spec = fake.spec(keep_alive=0.0)
    use(spec, keeper)
    stop_server(fake.directory(), force=False, policy=FAST)
    use(spec, keeper)
    fake.stop()
    shutil.rmtree(Path(fake.directory().path))
    use(spec, keeper)
    assert keepers(fake.directory().clients) == [os.getpid()]
    keeper.close()
    fake.wait_until_unsupervised()
