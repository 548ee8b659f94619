"""Stop means stopped: nobody left, nothing on the port, requests under way told so."""

import os
import signal

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, Stream, ask

from langchain_car_vllm.errors import ServerBusyError, ServerStoppedError
from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.port import is_free


def stop(fake: Fake) -> bool:
    return stop_server(fake.directory(), policy=FAST)


def test_stop_leaves_nothing(fake: Fake):
    """After `stop_server` the port refuses and the state says who stopped it."""
    with lease(fake.spec(), policy=FAST):
        pass
    port = fake.state().port
    assert port is not None
    assert stop(fake)
    assert is_free(port)
    assert fake.state().reason == "user"
    assert not stop(fake)


def test_stop_ends_requests_under_way_with_its_own_error(fake: Fake):
    """A stream under way ends and is explained as stopped, not as crashed."""
    fake.switch(token_gate=fake.gate("token"))
    with lease(fake.spec(), policy=FAST) as held:
        stream = Stream(held.endpoint)
        tokens = stream.tokens()
        assert next(tokens) == "tok0 "
        assert stop(fake)
        with pytest.raises(Exception):  # noqa: B017, PT011
            assert list(tokens)
        assert isinstance(held.explain(), ServerStoppedError)
        stream.close()


def test_call_during_a_stop_waits_and_starts_again(fake: Fake):
    """A call that meets a stopping server gets a new one."""
    fake.switch(save_lines=10)
    with lease(fake.spec(), policy=FAST):
        pass
    stopping = Background(lambda: stop(fake))
    fake.wait_for_phase("stopping")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 2
        assert ask(held.endpoint)
    assert stopping.result()


def test_server_that_saves_its_cache_is_waited_for(fake: Fake):
    """Saving takes longer than the grace and is not cut while it makes headway."""
    fake.switch(save_lines=30)
    with lease(fake.spec(), policy=FAST):
        pass
    log = fake.directory().log
    assert stop(fake)
    assert "saved entry 29" in log.read_text()


def test_server_that_ignores_sigint_is_killed(fake: Fake):
    """A deaf server is gone after the graces."""
    fake.switch(ignore_sigint=True)
    with lease(fake.spec(), policy=FAST):
        pass
    assert stop(fake)


def test_grandchild_with_the_servers_output_is_ended_too(fake: Fake):
    """A process that the server left behind in its group is gone as well."""
    fake.switch(grandchild=True)
    with lease(fake.spec(), policy=FAST):
        pass
    assert stop(fake)


def test_stop_while_loading_aborts_the_load(fake: Fake):
    """Callers who wait for the load are told that it was stopped."""
    fake.switch(load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__())
    fake.wait_for_phase("load")
    assert stop(fake)
    with pytest.raises(ServerStoppedError):
        call.result()


def test_two_stops_at_once_both_return(fake: Fake):
    """Both find the server gone."""
    with lease(fake.spec(), policy=FAST):
        pass
    stops = [Background(lambda: stop(fake)) for _ in range(2)]
    outcomes = [call.result() for call in stops]
    assert any(outcomes)


def test_gentle_stop_refuses_while_somebody_is_served(fake: Fake):
    """Without force a server with a request under way stays."""
    client = ClientProcess(fake)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    with pytest.raises(ServerBusyError):
        stop_server(fake.directory(), force=False, policy=FAST)
    client.finish()
    assert stop_server(fake.directory(), force=False, policy=FAST)


def test_suspended_supervisor_is_killed_and_its_server_with_it(fake: Fake):
    """A supervisor under SIGSTOP cannot stop anything, so it is ended by identity."""
    with lease(fake.spec(), policy=FAST):
        pass
    os.kill(fake.state().supervisor.pid, signal.SIGSTOP)
    assert stop(fake)
    assert fake.state().reason == "user"


def test_suspended_server_is_killed(fake: Fake):
    """A server under SIGSTOP ends with SIGKILL."""
    with lease(fake.spec(), policy=FAST):
        pass
    server = fake.state().server
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    assert stop(fake)
