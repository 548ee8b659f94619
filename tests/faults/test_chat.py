"""What a caller of the chat model meets when its server crashes or is stopped."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from faults.support import Fake, eventually
from langchain_core.exceptions import ModelTimeoutError

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import (
    ConfigurationError,
    ServerBusyError,
    ServerCrashedError,
    ServerStoppedError,
)

WAYS: dict[str, Callable[[ChatVllmMlx], Any]] = {
    "invoke": lambda model: model.invoke("hi").text,
    "stream": lambda model: "".join(chunk.text for chunk in model.stream("hi")),
    "ainvoke": lambda model: asyncio.run(model.ainvoke("hi")).text,
    "astream": lambda model: asyncio.run(_astreamed(model)),
}


async def _astreamed(model: ChatVllmMlx) -> str:
    return "".join([chunk.text async for chunk in model.astream("hi")])


@pytest.fixture
def model(fake: Fake) -> ChatVllmMlx:
    """A chat model on the fake installation."""
    return ChatVllmMlx(model=str(fake.model), max_tokens=3)


@pytest.mark.parametrize("way", WAYS)
def test_a_crash_before_the_first_token_is_replayed(fake: Fake, model: ChatVllmMlx, way: str):
    """The call starts the server again and answers, as if nothing had happened."""
    fake.switch(crash_after=0)
    model.warm_up()
    fake.switch()
    assert WAYS[way](model).strip() == "tok0 tok1 tok2"
    assert len(fake.starts()) == 2


def test_a_second_crash_is_told(fake: Fake, model: ChatVllmMlx):
    """A call is replayed once; then the crash is told with the server's last error."""
    fake.switch(crash_after=0)
    with pytest.raises(ServerCrashedError, match="fake abort"):
        model.invoke("hi")
    assert len(fake.starts()) == 2


def test_a_crash_for_want_of_memory_is_not_replayed(fake: Fake, model: ChatVllmMlx):
    """What ran out of memory once would do so again."""
    fake.switch(crash_after=0, load_error="[metal::malloc] Unable to allocate 9 bytes")
    with pytest.raises(ServerCrashedError) as caught:
        model.invoke("hi")
    assert len(fake.starts()) == 1
    assert "memory" in (caught.value.hint or "")


def test_a_stream_that_had_begun_ends_with_the_crash(fake: Fake, model: ChatVllmMlx):
    """Nothing is said twice: what was seen stays, and the error follows."""
    fake.switch(crash_after=2)
    seen: list[str] = []
    with pytest.raises(ServerCrashedError):
        seen.extend(chunk.text for chunk in model.stream("hi"))
    assert seen == ["tok0 ", "tok1 "]
    assert len(fake.starts()) == 1


def test_a_stop_ends_the_requests_under_way_and_the_next_call_starts_anew(
    fake: Fake, model: ChatVllmMlx
):
    """`unload` refuses while somebody is answered, unless it is forced."""
    fake.switch(token_gate=fake.gate("tokens"))
    stream = model.stream("hi")
    assert next(stream).text == "tok0 "
    with pytest.raises(ServerBusyError):
        model.unload()
    model.unload(force=True)
    with pytest.raises(ServerStoppedError):
        list(stream)
    fake.open_gate("tokens")
    assert model.invoke("hi").text.strip() == "tok0 tok1 tok2"
    model.unload()


def test_one_server_answers_all_ways_of_calling(fake: Fake, model: ChatVllmMlx):
    """Threads and loops share it."""
    for way in WAYS.values():
        assert way(model).strip() == "tok0 tok1 tok2"
    assert model.batch(["a", "b", "c"])[2].text.strip() == "tok0 tok1 tok2"
    assert len(fake.starts()) == 1


def test_keep_alive_of_a_call_wins(fake: Fake, model: ChatVllmMlx):
    """`keep_alive=0` in a call stops the server after it, whatever the model's own says."""
    assert model.invoke("hi").text
    assert fake.state().phase == "ready"
    assert model.invoke("hi", keep_alive=0).text
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"
    assert model.bind(keep_alive="5m").invoke("hi").text
    eventually(lambda: "300.0" in record(fake), "the record of the call's wish")


def record(fake: Fake) -> str:
    return "".join(path.read_text() for path in fake.directory().clients.glob("[!.]*"))


def test_keep_alive_of_a_call_is_checked(fake: Fake, model: ChatVllmMlx):
    """What is not a duration is refused before anything starts."""
    with pytest.raises(ConfigurationError, match="keep_alive"):
        model.invoke("hi", keep_alive="soon")
    assert not fake.starts()


def test_keep_alive_comes_from_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """`CAR_VLLM_MLX_KEEP_ALIVE` is the default of every model that names none."""
    monkeypatch.setenv("CAR_VLLM_MLX_KEEP_ALIVE", "0")
    ChatVllmMlx(model=str(fake.model)).warm_up()
    fake.wait_until_unsupervised()
    assert fake.state().reason == "idle"


@pytest.mark.parametrize("way", WAYS)
def test_a_suspended_server_costs_a_timeout(fake: Fake, way: str):
    """A server that has fallen silent is not replaced: the call ends with LangChain's timeout."""
    model = ChatVllmMlx(model=str(fake.model), max_tokens=3)
    model.warm_up()
    server = fake.state().server
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(ModelTimeoutError):
        WAYS[way](model.model_copy(update={"timeout": 0.4}))
    os.kill(server.pid, signal.SIGCONT)
    assert WAYS[way](model).strip() == "tok0 tok1 tok2"
    assert len(fake.starts()) == 1
