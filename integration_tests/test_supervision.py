"""The real server under the supervisor: killed, stopped, shared, and warm again after a stop."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ServerCrashedError, ServerStoppedError
from langchain_car_vllm.server import directory_of, running_servers, stop_server
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import close_lock, is_held, open_lock
from langchain_car_vllm.server.state import State, read_state

Chat = Callable[..., ChatVllmMlx]
pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def directory(llm: ChatVllmMlx) -> ServerDirectory:
    return directory_of(llm._spec(engine=llm.engine))


def state(llm: ChatVllmMlx) -> State:
    found = read_state(directory(llm).state)
    assert found is not None
    return found


def is_supervised(llm: ChatVllmMlx) -> bool:
    descriptor = open_lock(directory(llm).supervisor_lock)
    try:
        return is_held(descriptor)
    finally:
        close_lock(descriptor)


@pytest.fixture
def llm(chat: Chat) -> Iterator[ChatVllmMlx]:
    """A server of its own, without crashes on its record, stopped afterwards."""
    model = chat(server_args=["--max-num-seqs", "16"], max_tokens=64)
    yield model
    stop_server(directory(model))
    directory(model).state.unlink(missing_ok=True)


def test_server_killed_in_mid_stream(llm: ChatVllmMlx):
    """The stream ends with the signal, the next call gets a new server."""
    llm.invoke("Say hi.")
    stream = llm.stream("Tell me a long story.")
    next(stream)
    server = state(llm).server
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(ServerCrashedError, match="SIGKILL"):
        list(stream)
    assert llm.invoke("Say hi.").text
    assert state(llm).generation == 2


def test_supervisor_killed_while_loading_and_when_ready(llm: ChatVllmMlx):
    """Its server goes with it, and the call that waits gets another one."""
    answers: list[str] = []
    call = threading.Thread(target=lambda: answers.append(llm.invoke("Say hi.").text))
    call.start()
    wait_until(lambda: directory(llm).state.exists() and state(llm).server)
    first = state(llm)
    assert first.server is not None
    os.kill(first.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: first.server is None or not first.server.find(), 5)
    call.join(120)
    assert answers
    second = state(llm)
    assert second.generation > first.generation
    assert second.server is not None
    os.kill(second.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: second.server is None or not second.server.find(), 5)
    assert llm.invoke("Say hi.").text


def test_stop_under_load(llm: ChatVllmMlx):
    """Four streams are told, the server is gone, its port refuses, its cache is saved."""
    llm.invoke("Say hi.")
    outcomes: list[BaseException | None] = []
    begun = threading.Semaphore(0)

    def stream() -> None:
        try:
            for number, _ in enumerate(llm.stream("Tell me a very long story.", max_tokens=512)):
                if number == 1:
                    begun.release()
            outcomes.append(None)
        except ServerStoppedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        begun.acquire(timeout=60)
    server = state(llm).server
    assert server is not None
    began = time.monotonic()
    assert stop_server(directory(llm))
    taken = time.monotonic() - began
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 4
    assert all(isinstance(outcome, ServerStoppedError) for outcome in outcomes)
    assert not psutil.pid_exists(server.pid)
    log = directory(llm).log.read_text(errors="replace")
    assert "Saving prefix cache" in log
    print(f"stop under load: {taken:.1f} s")


def test_eight_clients_from_four_processes(llm: ChatVllmMlx, smollm2: str, fast_cpu):
    """Two threads in each of four processes share one server."""
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from langchain_car_vllm import ChatVllmMlx
llm = ChatVllmMlx(model={smollm2!r}, temperature=0, max_tokens=8, server_env={fast_cpu!r},
                  server_args=["--max-num-seqs", "16"])
with ThreadPoolExecutor(2) as pool:
    print(all(r.text for r in pool.map(llm.invoke, ["Say hi.", "Count to three."])))
"""
    command = [sys.executable, "-c", code]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for client in clients:
        out, _ = client.communicate(timeout=240)
        assert out.strip() == "True"
    assert state(llm).generation == 1
    assert [s.source for _, s in running_servers()].count(smollm2) >= 1


def test_idle_stop_and_warm_return(chat: Chat):
    """A conversation that goes on after an idle stop finds its prefix in the saved cache."""
    args = ["--max-num-seqs", "16", "--prefix-cache-size", "100"]
    llm = chat(keep_alive=5.0, max_tokens=4, server_args=args)
    # Saved caches outlive the tests, and the server reuses nothing for an exact repeat.
    system = f"You are {secrets.token_hex(8)}. You know colours. " + "Red is a colour. " * 150
    history: list[BaseMessage] = [SystemMessage(system)]

    def ask(question: str) -> float:
        history.append(HumanMessage(question))
        began = time.perf_counter()
        text = ""
        first = 0.0
        for chunk in llm.stream(history):
            first = first or time.perf_counter() - began
            text += chunk.text
        history.append(AIMessage(text))
        return first

    ask("Name one.")
    warm = ask("Name another.")
    wait_until(lambda: not is_supervised(llm))
    assert state(llm).reason == "idle"
    llm.invoke("Say hi.")
    again = ask("And another.")
    cold_llm = chat(max_tokens=1, server_args=[*args, "--disable-prefix-cache"])
    cold_llm.invoke("Say hi.")
    began = time.perf_counter()
    cold_llm.invoke(history[:-1])
    cold = time.perf_counter() - began
    stop_server(directory(cold_llm))
    print(f"first token: warm {warm:.2f} s, after the stop {again:.2f} s, cold {cold:.2f} s")
    assert again < cold / 2
    wait_until(lambda: not is_supervised(llm))
