"""Stops that end just what they met, and turns that fail half way."""

import http.client
import linecache
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

import pytest
from faults.support import FAST, Background, Fake, ask, eventually

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError, ServerStoppedError
from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.client import hold
from langchain_car_vllm.server.client import process_lease as process_lease_module
from langchain_car_vllm.server.client.hold import Hold
from langchain_car_vllm.server.client.place import Place
from langchain_car_vllm.server.client.process_lease import process_lease_of
from langchain_car_vllm.server.directory import server_directory
from langchain_car_vllm.server.suspension import Suspensions
from langchain_car_vllm.server.tickets import Rules


def test_stop_ends_the_server_it_met_and_not_its_successors(fake: Fake):
    """Calls that come after the stop start a server of their own and are not stopped as well."""
    with lease(fake.spec(), policy=FAST):
        pass
    over = threading.Event()
    told: list[BaseException] = []
    answered: list[str] = []

    def keep_calling() -> None:
        while not over.is_set():
            try:
                with lease(fake.spec(), policy=FAST) as held:
                    answered.append(ask(held.endpoint))
            except ServerStoppedError as error:
                if "starting" in str(error):
                    told.append(error)
            except (OSError, AssertionError, http.client.HTTPException):
                continue

    callers = [threading.Thread(target=keep_calling) for _ in range(3)]
    for caller in callers:
        caller.start()
    eventually(lambda: len(answered) > 3, "some answers")
    stopping = Background(lambda: stop_server(fake.directory(), policy=FAST))
    stopping.join(10)
    returned = not stopping.is_alive()
    generation = fake.state().generation
    over.set()
    for caller in callers:
        caller.join(10)
    stopping.join(10)
    assert returned
    assert generation <= 2
    assert not told


def test_stop_that_is_held_up_leaves_the_successor_alone(fake: Fake):
    """A stop that looks away while its server ends and another starts does not stop that too."""
    fake.switch(save_lines=10)
    with lease(fake.spec(), policy=FAST):
        pass
    code = f"""
from langchain_car_vllm.server import Policy, ServerSpec, directory_of, stop_server
spec = ServerSpec(source={str(fake.model)!r}, served_name={str(fake.model)!r})
print(stop_server(directory_of(spec), policy=Policy.from_dict({FAST.to_dict()!r})))
"""
    stopper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    fake.wait_for_phase("stopping")
    stopper.send_signal(signal.SIGSTOP)
    with lease(fake.spec(), policy=FAST) as held:
        stopper.send_signal(signal.SIGCONT)
        assert stopper.communicate(timeout=20)[0] == "True\n"
        assert fake.state().phase == "ready"
        assert held.endpoint.generation == fake.state().generation == 2


def test_turn_that_fails_half_way_blocks_nobody(fake: Fake):
    """Without a free descriptor the queue is left again, or everybody behind waits forever."""
    directory = server_directory("0123456789abcdef")
    directory.create()
    endpoint = Endpoint("http://127.0.0.1:1/v1", None, "m")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises((OSError, CarVllmError)):
            Place(directory, endpoint, Rules(), 1, Suspensions(60)).try_enter(
                Rules, arrives_late=False
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    place = Place(directory, endpoint, Rules(), 1, Suspensions(60))
    assert place.try_enter(Rules, arrives_late=False) == "enter"


def test_keyboard_interrupt_while_the_record_is_written(fake: Fake, monkeypatch):
    """Ctrl-C at any point of the way to the lease leaves no holder behind."""
    fake.directory().create()
    process_lease = process_lease_of(fake.directory())
    real = process_lease_module.write_record

    def interrupted(path, keep_alive):
        real(path, keep_alive)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(process_lease_module, "write_record", interrupted)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), lease(fake.spec(), policy=FAST):
        pass
    signal.signal(signal.SIGINT, usual)
    assert process_lease.holders == 0


def test_keyboard_interrupt_at_any_line_of_the_lease(fake: Fake):
    """Wherever it comes, the request's end gives the lease back, and the next one gets it."""
    fake.directory().create()
    process_lease = process_lease_of(fake.directory())
    files = {hold.__file__, process_lease_module.__file__}
    line, last = 0, -1
    while line > last:
        last = line
        holding = Hold(60.0)

        def use(holding: Hold = holding) -> None:
            assert holding.take(process_lease)
            holding.release()

        line = interrupt_at(line + 1, files, use)
        holding.release()
        assert process_lease.holders == 0
        assert process_lease.is_idle()
    assert line > 20


def interrupt_at(number: int, files: Collection[str], call: Callable[[], None]) -> int:
    """Make a call that is interrupted at a line of the files; return how many lines it came to."""
    met = 0

    def local(frame: FrameType, event: str, _: object) -> Any:
        nonlocal met
        if event == "line" and not is_between(frame):
            met += 1
            if met == number:
                raise KeyboardInterrupt
        return local

    usual = sys.gettrace()
    sys.settrace(lambda frame, *_: local if frame.f_code.co_filename in files else None)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(usual)
    return met


def is_between(frame: FrameType) -> bool:
    """Tell whether a trace stops where the interpreter does not: between a lock and its block."""
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return text.startswith(("with ", "try:"))
