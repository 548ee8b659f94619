"""Each reason for a server's end, as every way of calling meets it: the table of the docs."""

import os
import signal
import threading
from collections.abc import Callable

import psutil
import pytest
from faults.support import FAST, Background, Fake, eventually
from faults.test_chat import WAYS
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import (
    CarVllmError,
    ServerCrashedError,
    ServerStartError,
    ServerStoppedError,
)
from langchain_car_vllm.server import stop_server

STREAMS = ("stream", "astream")
ANSWER = "tok0 tok1 tok2"


@pytest.fixture
def model(fake: Fake) -> ChatVllmMlx:
    """A chat model on the fake installation."""
    return ChatVllmMlx(model=str(fake.model), max_tokens=3)


def ended(model: BaseChatModel, way: str) -> CarVllmError:
    """Make a call that does not get its answer, and return what it gets."""
    with pytest.raises(CarVllmError) as caught:
        WAYS[way](model)
    return caught.value


def answered(fake: Fake) -> bool:
    """Tell whether a request is under way at the server."""
    state = fake.state()
    assert state.server is not None
    found = state.server.find()
    return found is not None and any(
        c.status == psutil.CONN_ESTABLISHED for c in found.net_connections()
    )


def by_command(fake: Fake, model: ChatVllmMlx) -> None:
    stop_server(fake.directory(), policy=FAST)


def by_unload(fake: Fake, model: ChatVllmMlx) -> None:
    model.unload(force=True)


def by_signal(fake: Fake, model: ChatVllmMlx) -> None:
    os.kill(fake.state().supervisor.pid, signal.SIGTERM)


@pytest.mark.parametrize("stop", [by_command, by_unload, by_signal])
@pytest.mark.parametrize("way", WAYS)
def test_user(fake: Fake, model: ChatVllmMlx, way: str, stop: Callable[..., None]):
    """A 500, as the server answers on its way down, and a broken stream are both the user's stop.

    No retry starts again what was just stopped; the next call does.
    """
    fake.switch(token_gate=fake.gate("tokens"), stop_status=500)
    model.warm_up()
    call = Background(lambda: ended(model, way))
    eventually(lambda: answered(fake), "the request")
    stop(fake, model)
    error = call.result()
    assert isinstance(error, ServerStoppedError), repr(error)
    assert (error.reason, error.is_retryable) == ("user", False)
    assert error.hint
    fake.switch()
    assert WAYS[way](model).strip() == ANSWER


@pytest.mark.parametrize("way", WAYS)
def test_idle(fake: Fake, model: ChatVllmMlx, way: str):
    """Nobody was served, so nobody is told: the call starts the server again."""
    assert model.invoke("hi", keep_alive=0).text
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"
    assert WAYS[way](model).strip() == ANSWER


@pytest.mark.parametrize("way", WAYS)
def test_crash(fake: Fake, model: ChatVllmMlx, way: str):
    """What was not seen is sent once more, what was seen is not.

    A request that crashed the server twice, alone, is to blame and not to be retried.
    """
    fake.switch(crash_after=1)
    error = ended(model, way)
    assert isinstance(error, ServerCrashedError)
    assert error.is_retryable == (way in STREAMS)
    assert "fake abort" in str(error)
    assert len(fake.starts()) == (1 if way in STREAMS else 2)


@pytest.mark.parametrize("way", WAYS)
def test_failed(fake: Fake, model: ChatVllmMlx, way: str):
    """Every caller that waited for the start gets the error that ended it."""
    fake.switch(load_gate=fake.gate("load"), load_exit=1, load_error="ValueError: no such type")
    calls = [Background(lambda: ended(model, way)) for _ in range(2)]
    eventually(fake.gate_is_awaited, "the start")
    fake.open_gate("load")
    for call in calls:
        error = call.result()
        assert isinstance(error, ServerStartError), repr(error)
        assert "no such type" in str(error)
        assert not error.is_retryable
    assert fake.state().reason == "failed"


class FirstToken(BaseCallbackHandler):
    """Tells when the caller of a stream has seen something of it."""

    def __init__(self) -> None:
        self.has_come = threading.Event()

    def on_llm_new_token(self, *_: object, **__: object) -> None:
        self.has_come.set()


@pytest.mark.parametrize("way", WAYS)
def test_lost(fake: Fake, model: ChatVllmMlx, way: str):
    """A supervisor that is killed takes its server along, which is a crash to the caller."""
    fake.switch(token_gate=fake.gate("tokens"))
    model.warm_up()
    first = FirstToken()
    call = Background(lambda: WAYS[way](model.model_copy(update={"callbacks": [first]})))
    if way in STREAMS:
        assert first.has_come.wait(30), "the first token"
    eventually(lambda: answered(fake), "the request")
    fake.switch()
    os.kill(fake.state().supervisor.pid, signal.SIGKILL)
    if way in STREAMS:
        with pytest.raises(ServerCrashedError) as caught:
            call.result()
        assert caught.value.is_retryable
    else:
        answer = call.result()
        assert answer is not None
        assert answer.strip() == ANSWER
