"""Odd arguments, many clients, and stops that others look at."""

import asyncio
import os
import random
import threading

import pytest
from faults.support import FAST, ClientProcess, Fake, eventually

from langchain_car_vllm.errors import ServerStartingError, ServerStoppedError
from langchain_car_vllm.server import alease, lease, stop_server
from langchain_car_vllm.server.tenant import tenant_of


def outcome(fake: Fake, seconds: float = 6.0, **changes: object) -> BaseException | None:
    try:
        with lease(fake.spec(**changes), policy=FAST, startup_timeout=seconds):
            return None
    except BaseException as error:  # noqa: BLE001
        return error


@pytest.mark.parametrize(
    "changes",
    [
        {"server_args": ("--chat-template", "a\0b")},
        {"server_env": (("A=B", "c"),)},
        {"server_env": (("A", "b\0c"),)},
    ],
)
def test_argument_that_no_process_can_have(fake: Fake, changes: dict):
    """What the system cannot pass to a process is refused, not tried for ever."""
    found = outcome(fake, 5.0, **changes)
    state = fake.state(**changes)
    assert not isinstance(found, ServerStartingError), f"{state.generation} lives in 5 s"


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
    assert tenant_of(fake.directory()).holders == 0
    fake.wait_for_phase("ready")


def test_records_of_dead_clients_do_not_pile_up(fake: Fake):
    """A server that lives long does not look at every client it ever had, every second."""
    with lease(fake.spec(), policy=FAST):
        pass
    clients = fake.directory().clients
    for number in range(2000):
        (clients / f"{4000000 + number}-1.00").write_text("0.01\n")
    eventually(lambda: len(list(clients.iterdir())) <= 101, "the records to go")


def test_lost_server_is_ended_while_others_look(fake: Fake):
    """`stop_server` cleans up after a lost supervisor although clients keep asking for it."""
    from langchain_car_vllm.server.locks import close_lock, is_held, open_lock

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
