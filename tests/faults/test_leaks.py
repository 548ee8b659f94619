"""Leases, locks and answers are not lost, whatever fails, is forked or given up on the way."""

import asyncio
import gc
import os
import shutil
import signal
import threading
import time
from contextlib import suppress

import pytest
from faults.support import FAST, Background, Fake, ask, error_of_lease, eventually, forked_child

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.server import alease, lease, stop_server
from langchain_car_vllm.server.client.hold import Hold
from langchain_car_vllm.server.client.process_lease import process_lease_of
from langchain_car_vllm.server.client.wait import Waiting
from langchain_car_vllm.server.locks import is_held, opened_lock, try_exclusive


def break_records(fake: Fake) -> None:
    clients = fake.directory().clients
    while not clients.is_file():  # a supervisor makes the folder anew when it looks
        shutil.rmtree(clients, ignore_errors=True)
        with suppress(IsADirectoryError):
            clients.write_text("a disk that refuses")


def test_failed_record_on_acquire_leaks_no_lease(fake: Fake):
    """A record that cannot be written fails the call and leaves no holder behind."""
    fake.directory().create()
    process_lease = process_lease_of(fake.directory())
    break_records(fake)
    with pytest.raises(CarVllmError), lease(fake.spec(), policy=FAST):
        pass
    assert process_lease.holders == 0
    with opened_lock(fake.directory().lease_lock) as descriptor:
        assert try_exclusive(descriptor)


def test_failed_record_on_release_costs_neither_answer_nor_lease(fake: Fake, tmp_path):
    """A disk that fills up during a request costs neither its answer nor the lease."""
    answers = []
    process_lease = None
    error = None
    try:
        with lease(fake.spec(keep_alive=5.0), policy=FAST) as held:
            answers.append(ask(held.endpoint))
            process_lease = process_lease_of(fake.directory())
            break_records(fake)
    except BaseException as caught:  # noqa: BLE001
        error = caught
    fake.directory().clients.unlink()
    fake.directory().clients.mkdir(exist_ok=True)
    assert (error, process_lease.holders) == (None, 0)


def test_cancellation_at_the_end_of_a_step_leaks_no_lease(fake: Fake):
    """Giving up between a step's last look and its unlock still gives the lease back."""
    with lease(fake.spec(), policy=FAST):
        process_lease = process_lease_of(fake.directory())
    waiting = Waiting(lambda: process_lease, fake.spec(), FAST, None, None)

    class Late:
        """The step's lock, with a cancellation exactly before its release."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            waiting.hold.give_up()
            self.lock.release()

        def acquire(self, blocking: bool = True) -> bool:
            return self.lock.acquire(blocking)

        def release(self) -> None:
            self.lock.release()

    waiting.hold.mutex = Late()
    waiting.step()
    assert process_lease.holders == 0


def test_lease_given_back_in_the_middle_of_something_else(fake: Fake):
    """The collector may end a request while its own thread takes the lease for another."""
    with lease(fake.spec(), policy=FAST):
        process_lease = process_lease_of(fake.directory())
        assert process_lease.acquire("a request", 60.0)
        with process_lease._guarded():
            process_lease.release("a request", 60.0)
            assert process_lease.holders == 2
        assert process_lease.holders == 1
    assert process_lease.holders == 0


def test_fork_during_a_start_does_not_keep_start_lock(fake: Fake):
    """A child forked while a start is under way does not block every later start."""
    fake.directory().create()
    begun = Background(lambda: error_of_lease(fake))
    with opened_lock(fake.directory().start_lock) as start_lock:
        # fork as soon as our Start thread holds start.lock
        eventually(lambda: is_held(start_lock), "start.lock to be held")
        with forked_child():
            assert begun.result() is None
            stop_server(fake.directory(), policy=FAST)
            assert not is_held(start_lock), "the forked child holds start.lock"
            assert error_of_lease(fake) is None


def test_child_forked_under_a_lease_leaves_it_cleanly(fake: Fake):
    """A child that leaves the block it was forked in meets no error and releases nothing."""
    reading, writing = os.pipe()
    child = -1
    try:
        with lease(fake.spec(), policy=FAST):
            child = os.fork()
    except OSError as error:
        if child == 0:
            os.write(writing, repr(error).encode())
            os._exit(1)
        raise
    if child == 0:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    assert os.waitstatus_to_exitcode(status) == 0, said


def test_explaining_holds_no_executor(fake: Fake):
    """`asyncio.run` ends at once although a cancelled task was explaining a broken connection."""
    seen = {}

    async def main() -> None:
        async with alease(fake.spec(), policy=FAST) as held:
            state = fake.state()
            os.kill(state.supervisor.pid, signal.SIGSTOP)
            os.kill(state.server.pid, signal.SIGKILL)
            seen["supervisor"] = state.supervisor.pid
            task = asyncio.create_task(held.aexplain())
            await asyncio.sleep(0.1)
            task.cancel()
            seen["cancelled"] = time.monotonic()

    asyncio.run(main())
    took = time.monotonic() - seen["cancelled"]
    os.kill(seen["supervisor"], signal.SIGCONT)
    fake.wait_until_unsupervised()
    assert took < 0.5, f"{took:.1f} s"


def test_dead_servers_connection_is_not_explained_as_well(fake: Fake):
    """A server whose process is gone is never `None`, even where its supervisor hangs."""
    with lease(fake.spec(), policy=FAST) as held:
        state = fake.state()
        os.kill(state.supervisor.pid, signal.SIGSTOP)
        os.kill(state.server.pid, signal.SIGKILL)
        try:
            assert held.explain() is not None
        finally:
            os.kill(state.supervisor.pid, signal.SIGCONT)
    fake.wait_until_unsupervised()


def test_calls_that_overlap_keep_nothing_of_those_that_ended(fake: Fake):
    """The next answer is begun before the present one is read to its end, again and again."""
    chat = ChatVllmMlx(model=str(fake.model), max_tokens=1)
    present = chat.stream("hi")
    next(present)
    for _ in range(10):
        following = chat.stream("hi")
        next(following)
        list(present)
        present = following
    gc.collect()
    assert sum(isinstance(each, Hold) for each in gc.get_objects()) <= 3
    list(present)
