"""The chat model over the supervised server: what a user sees when it crashes, stops or hangs."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
from faults.support import FAST, Background, Fake, eventually

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ServerBusyError, ServerCrashedError, ServerStoppedError
from langchain_car_vllm.server import running_servers, stop_server


@pytest.fixture
def llm(fake: Fake) -> ChatVllmMlx:
    return ChatVllmMlx(model=str(fake.model), engine="simple")


def chat_state(fake: Fake):
    ((_, state),) = running_servers()
    return state


def test_invoke_stream_and_batch(fake: Fake, llm: ChatVllmMlx):
    """The first call starts the server, the others use it."""
    assert llm.invoke("hi").text == "tok0 tok1 tok2 "
    assert "".join(chunk.text for chunk in llm.stream("hi")) == "tok0 tok1 tok2 "
    assert [reply.text for reply in llm.batch(["a"] * 8)] == ["tok0 tok1 tok2 "] * 8
    assert len(fake.starts()) == 1


async def test_async_calls(fake: Fake, llm: ChatVllmMlx):
    """The asynchronous calls do the same."""
    assert (await llm.ainvoke("hi")).text == "tok0 tok1 tok2 "
    assert "".join([chunk.text async for chunk in llm.astream("hi")]) == "tok0 tok1 tok2 "


def test_used_model_can_be_pickled(fake: Fake, llm: ChatVllmMlx):
    """The object holds no client, lock or process, also after use."""
    llm.invoke("hi")
    assert pickle.loads(pickle.dumps(llm)).invoke("hi").text == "tok0 tok1 tok2 "
    assert len(fake.starts()) == 1


def test_crash_before_anything_was_seen_is_replayed(fake: Fake, llm: ChatVllmMlx):
    """A server that dies between two calls costs the second call a restart, nothing more."""
    llm.invoke("hi")
    server = chat_state(fake).server
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    assert llm.invoke("hi").text == "tok0 tok1 tok2 "
    assert len(fake.starts()) == 2


def test_crash_is_replayed_once_only(fake: Fake, llm: ChatVllmMlx):
    """A request that kills the server every time ends with the crash."""
    fake.switch(crash_after=0)
    with pytest.raises(ServerCrashedError, match="SIGABRT"):
        llm.invoke("hi")
    assert len(fake.starts()) == 2


def test_stream_that_had_begun_is_not_replayed(fake: Fake, llm: ChatVllmMlx):
    """Text that was seen is not sent twice: the stream ends with the error."""
    fake.switch(crash_after=2)
    seen: list[str] = []
    with pytest.raises(ServerCrashedError):
        seen.extend(chunk.text for chunk in llm.stream("hi"))
    assert "".join(seen) == "tok0 tok1 "
    assert len(fake.starts()) == 1


def test_stop_by_a_user_is_told_and_the_next_call_starts_again(fake: Fake, llm: ChatVllmMlx):
    """A request under way when somebody stops the server is not replayed."""
    fake.switch(token_gate=fake.gate("token"))
    stream = llm.stream("hi")
    assert next(stream).text in ("", "tok0 ")
    ((directory, _),) = running_servers()
    stop_server(directory, policy=FAST)
    with pytest.raises(ServerStoppedError):
        list(stream)
    fake.open_gate("token")
    assert llm.invoke("hi").text == "tok0 tok1 tok2 "


def test_silent_server_ends_in_a_timeout(fake: Fake):
    """A server under SIGSTOP gives a timeout error of LangChain's class, within `timeout`."""
    from langchain_core.exceptions import ModelTimeoutError

    llm = ChatVllmMlx(model=str(fake.model), timeout=1.0)
    llm.invoke("hi")
    server = chat_state(fake).server
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(ModelTimeoutError):
        llm.invoke("hi")


def test_unload_frees_and_refuses(fake: Fake, llm: ChatVllmMlx):
    """`unload` stops the server, but not under a request unless forced."""
    fake.switch(token_gate=fake.gate("token"))
    call = Background(lambda: llm.invoke("hi"))
    eventually(lambda: fake.starts() and running_servers(), "the start")
    eventually(lambda: chat_state(fake).phase == "ready", "readiness")
    with pytest.raises(ServerBusyError):
        llm.unload()
    llm.unload(force=True)
    with pytest.raises(ServerStoppedError):
        call.result()
    assert running_servers() == []
    llm.unload()


def test_external_endpoint_is_never_stopped(fake: Fake):
    """`unload` of somebody else's endpoint is refused."""
    with pytest.raises(ValueError, match="somebody else"):
        ChatVllmMlx(model="any", base_url="http://127.0.0.1:9/v1").unload()


def test_construction_starts_nothing(fake: Fake, llm: ChatVllmMlx, home):
    """Constructing, binding and copying leave no file and no process."""
    llm.bind_tools([{"name": "f", "description": "d", "parameters": {}}])
    llm.model_copy(update={"temperature": 0.5})
    assert fake.starts() == []
    assert list(home.iterdir()) == []


def test_script_that_only_constructs_imports_no_openai(fake: Fake):
    """openai and httpx are imported at the first call."""
    code = f"""
import sys
from langchain_car_vllm import ChatVllmMlx
ChatVllmMlx(model={str(fake.model)!r})
print(sorted({{"openai", "langchain_openai", "httpx"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
