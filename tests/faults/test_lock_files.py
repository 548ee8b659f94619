"""Lock files that somebody removes, as cleaners of temporary folders do."""

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, ask, eventually

from langchain_car_vllm.errors import ServerCrashedError, ServerStoppedError
from langchain_car_vllm.server import lease

LOCKS = ["life-*.lock", "server.lock", "supervisor.lock", "lease.lock", "start.lock", "*.lock"]


@pytest.mark.parametrize("pattern", LOCKS)
@pytest.mark.parametrize("phase", ["load", "ready"])
def test_removed_lock_files_keep_nobody_waiting(fake: Fake, pattern: str, phase: str):
    """Those who wait, those who come later and other processes get a server, or are told."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__())
    eventually(fake.gate_is_awaited, "the load")
    if phase == "ready":
        fake.open_gate("load")
        call.result()
    for path in fake.directory().path.glob(pattern):
        path.unlink()
    fake.open_gate("load")
    held = call.result()
    assert held is not None
    other = ClientProcess(fake)
    assert other.read() == "began"
    assert other.read().startswith("leased")
    with lease(fake.spec(), policy=FAST) as again:
        assert ask(again.endpoint)
    other.finish()


def test_request_under_way_is_told_when_its_server_has_to_go(fake: Fake):
    """A server that clients can no longer see alive is replaced; its request may be sent again."""
    with lease(fake.spec(), policy=FAST) as held:
        fake.directory().server_lock.unlink()
        fake.wait_until_unsupervised()
        error = held.explain()
    assert isinstance(error, ServerCrashedError | ServerStoppedError)
    assert error.is_retryable
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
