"""Idleness: the server stops when nobody has used it for keep_alive, and never before."""

import time
from pathlib import Path

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, Stream, ask

from langchain_car_vllm.server import lease


def test_stops_after_keep_alive(fake: Fake):
    """A server that nobody uses is gone soon after keep_alive."""
    with lease(fake.spec(keep_alive=0.2), policy=FAST):
        pass
    fake.wait_until_unsupervised()
    state = fake.state()
    assert (state.phase, state.reason) == ("stopped", "idle")
    assert state.api_key is None


def test_keep_alive_zero_stops_at_once_after_the_answer(fake: Fake):
    """With keep_alive 0 the first request is answered although ready was just reached."""
    for _ in range(5):
        with lease(fake.spec(keep_alive=0), policy=FAST) as held:
            assert ask(held.endpoint)
        fake.wait_until_unsupervised()
    assert len(fake.starts()) == 5


def test_negative_keep_alive_never_stops(fake: Fake):
    """With keep_alive -1 the supervisor lives on."""
    with lease(fake.spec(keep_alive=-1), policy=FAST):
        pass
    client = ClientProcess(fake, keep_alive=-1.0)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    client.finish()
    assert len(fake.starts()) == 1


def test_request_longer_than_keep_alive_is_never_cut(fake: Fake):
    """A stream that lasts longer than keep_alive ends well."""
    fake.switch(token_gate=fake.gate("token"))
    with lease(fake.spec(keep_alive=0.05), policy=FAST) as held:
        stream = Stream(held.endpoint)
        tokens = stream.tokens()
        assert next(tokens) == "tok0 "
        with lease(fake.spec(keep_alive=0.05), policy=FAST):
            pass
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert fake.state().phase == "ready"
        fake.open_gate("token")
        assert list(tokens) == ["tok1 ", "tok2 "]
        stream.close()
    fake.wait_until_unsupervised()


def test_ten_short_requests_a_second_keep_it_alive(fake: Fake):
    """Requests shorter than the supervisor's tick count: they are recorded, not sampled."""
    spec = fake.spec(keep_alive=1.0)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        with lease(spec, policy=FAST) as held:
            ask(held.endpoint, tokens=1)
            assert held.endpoint.generation == 1
        time.sleep(0.1)


def test_idle_stop_racing_new_requests_is_transparent(fake: Fake):
    """A hundred requests, each sent when the server is about to stop, are all answered."""
    spec = fake.spec(keep_alive=0.0)

    def in_rounds() -> None:
        for _ in range(50):
            with lease(spec, policy=FAST) as held:
                assert ask(held.endpoint, tokens=1) == "tok0 "

    for call in [Background(in_rounds) for _ in range(2)]:
        call.join(50)
        call.result()


def test_client_killed_in_mid_stream_counts_as_released(fake: Fake):
    """The server of a client that was killed in the middle of a stream stops after keep_alive."""
    fake.switch(token_gate=fake.gate("token"))
    then = f"""
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from faults.support import Stream
    stream = Stream(held.endpoint)
    print(next(stream.tokens()), flush=True)"""
    client = ClientProcess(fake, then, keep_alive=0.2)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    assert client.read() == "tok0"
    client.kill()
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


def test_client_killed_while_idle_keeps_nothing_alive(fake: Fake):
    """The wish of a client that was killed between two requests runs out like any other."""
    client = ClientProcess(fake, keep_alive=0.2, between_requests=True)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    assert client.read() == "released"
    client.kill()
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


def test_client_killed_while_loading_leaves_no_server(fake: Fake):
    """The start goes on without its client and the server stops when idle."""
    fake.switch(load_gate=fake.gate("load"))
    client = ClientProcess(fake, keep_alive=0.1)
    assert client.read() == "began"
    fake.wait_for_phase("load")
    client.kill()
    fake.open_gate("load")
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


@pytest.mark.parametrize("mine", [0.1, -1.0])
def test_latest_wish_of_the_longest_client_holds(fake: Fake, mine: float):
    """One client wants it short, another long: the long one holds."""
    other = ClientProcess(fake, keep_alive=60.0)
    assert other.read() == "began"
    assert other.read() == "leased 1"
    other.finish()
    with lease(fake.spec(keep_alive=mine), policy=FAST):
        pass
    deadline = time.monotonic() + 0.4
    while time.monotonic() < deadline:
        assert fake.state().phase == "ready"
