"""Odd arguments, many clients, and stops that others look at."""

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults.support import FAST, ClientProcess, Fake, error_of_lease, eventually

from langchain_car_vllm.errors import ServerStartingError, ServerStoppedError
from langchain_car_vllm.server import alease, lease, stop_server
from langchain_car_vllm.server.client.process_lease import process_lease_of
from langchain_car_vllm.server.locks import (
    close_lock,
    is_held,
    open_lock,
    opened_lock,
    release,
    try_exclusive,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"server_args": ("--chat-template", "a\0b")},
        {"server_env": (("A=B", "c"),)},
        {"server_env": (("A", "b\0c"),)},
    ],
)
def test_argument_that_no_process_can_have(fake: Fake, changes: dict):
    """What the system cannot pass to a process is refused, not tried forever."""
    found = error_of_lease(fake, **changes)
    state = fake.state(**changes)
    assert not isinstance(found, ServerStartingError), f"{state.generation} still lives"


def test_users_stop_is_told_even_if_somebody_started_again(fake: Fake):
    """A request cut by a user's stop is not replayed because another call came first."""
    with lease(fake.spec(), policy=FAST) as held:
        stop_server(fake.directory(), policy=FAST)
        client = ClientProcess(fake)
        assert client.read() == "began"
        assert client.read() == "leased 2"
        verdict = held.explain()
        client.finish()
    assert isinstance(verdict, ServerStoppedError), repr(verdict)


def test_two_hundred_cancelled_tasks_leak_nothing(fake: Fake):
    """Tasks that are cancelled at any await leave no holder behind."""
    fake.switch(load_gate=fake.gate("load"))

    async def one() -> None:
        async with alease(fake.spec(), policy=FAST):
            await asyncio.sleep(10)

    async def main() -> None:
        tasks = [asyncio.create_task(one()) for _ in range(200)]
        for number, task in enumerate(random.sample(tasks, 200)):
            await asyncio.sleep(random.random() * 0.01)
            task.cancel()
            if number == 80:
                fake.open_gate("load")
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert process_lease_of(fake.directory()).holders == 0
    fake.wait_for_phase("ready")


def test_records_of_dead_clients_do_not_pile_up(fake: Fake):
    """A server that lives long does not look at every client it ever had, every second."""
    with lease(fake.spec(), policy=FAST):
        pass
    clients = fake.directory().clients
    for number in range(2000):
        (clients / f"{4000000 + number}-1.00").write_text("0.01\n")
    eventually(lambda: len(list(clients.iterdir())) <= 101, "the records to go")


LOOKERS = """
import sys, threading, time
from pathlib import Path
from langchain_car_vllm.server.locks import is_held, open_lock
def work():
    while True: sum(range(1000))
def look():
    descriptor = open_lock(Path(sys.argv[1]))
    while True:
        is_held(descriptor)
        time.sleep(0.02)
for target in [work] * 3 + [look] * 20:
    threading.Thread(target=target, daemon=True).start()
print("looking", flush=True)
sys.stdin.read()
"""


def test_many_threads_of_a_busy_program_that_look_leave_the_lock_free(tmp_path: Path):
    """Looking at a lock holds it for an instant, not until the interpreter has time again."""
    command = [sys.executable, "-c", LOOKERS, str(tmp_path / "lock")]
    lookers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert lookers.stdout is not None
    assert lookers.stdout.readline() == "looking\n"
    taken = 0
    with opened_lock(tmp_path / "lock") as descriptor:
        for _ in range(300):
            if try_exclusive(descriptor):
                taken += 1
                release(descriptor)
            time.sleep(0.002)
    lookers.kill()
    lookers.communicate()
    assert taken > 250


def test_lost_server_is_ended_while_others_look(fake: Fake):
    """`stop_server` cleans up after a lost supervisor although clients keep asking for it."""
    with lease(fake.spec(), policy=FAST):
        os.kill(fake.state().supervisor.pid, 9)
    fake.wait_until_unsupervised()
    stop = threading.Event()

    def look() -> None:
        descriptor = open_lock(fake.directory().supervisor_lock)
        while not stop.is_set():
            is_held(descriptor)
        close_lock(descriptor)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    missed = 0
    try:
        values = fake.directory().state.read_text()
        for _ in range(100):
            fake.directory().state.write_text(values)
            missed += not stop_server(fake.directory(), policy=FAST)
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
    assert missed == 0
