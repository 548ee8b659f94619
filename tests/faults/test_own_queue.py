"""The requests of one program that wait for a server: one of them looks, in the order of asking."""

import asyncio
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults.support import Background, eventually
from faults.turns import Make, enter, enters, tickets
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server.client import place
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.wire.transport.passage import aenter_gate, enter_gate
from langchain_car_vllm.wire.transport.timeouts import Clock

SEATS = 2


def test_only_the_first_that_waits_looks(
    admission: Make, directory: ServerDirectory, monkeypatch: pytest.MonkeyPatch
):
    """Others would look through all tickets again and again, each at every tick."""
    inside, *waiting = (admission(multimodal=False, max_sequences=1) for _ in range(9))
    enter(inside)
    assert not any(map(enters, waiting))
    assert tickets(directory) == ["answering", *["waiting"] * 8]
    looks = []
    look = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: looks.append(folder) or look(folder))
    assert not any(map(enters, waiting))
    assert looks == [os.fspath(directory.turns)]
    inside.leave(is_over=True)
    assert list(map(enters, waiting[:2])) == [True, False]


def clock() -> Clock:
    return Clock(Endpoint("http://127.0.0.1:9/v1", "k", "m"), None, total=True)


def pass_through(gate: Admission) -> None:
    with enter_gate(gate, 1, clock(), arrives_late=False) as passage:
        passage.is_over = True


async def apass_through(gate: Admission) -> None:
    async with aenter_gate(gate, 1, clock(), arrives_late=False) as passage:
        passage.is_over = True


def test_each_wakes_the_next_of_its_process(admission: Make):
    """Threads and tasks of several loops, one of which gives up; nobody sleeps to the end."""
    inside, *gates = (admission(multimodal=False, max_sequences=1, tick=2.0) for _ in range(9))
    enter(inside)

    async def all_but_one() -> None:
        tasks = [asyncio.create_task(apass_through(gate)) for gate in gates[2:5]]
        await asyncio.to_thread(wait_for, gates[2:5])
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    calls = [Background(partial(pass_through, gate)) for gate in gates[:2]]
    calls.append(Background(lambda: asyncio.run(all_but_one())))
    calls += [Background(lambda: asyncio.run(apass_through(gates[5])))]
    calls += [Background(partial(pass_through, gate)) for gate in gates[6:]]
    wait_for([*gates[:3], *gates[4:]])
    began = time.monotonic()
    inside.leave(is_over=True)
    for call in calls:
        call.result()
    assert time.monotonic() - began < 10  # 16 where the last wakes up by itself


def wait_for(gates: list[Admission]) -> None:
    """Wait until they wait."""
    eventually(lambda: all(gate.holds_place for gate in gates), "all to wait")


def test_those_that_come_later_try_less_often(admission: Make, monkeypatch: pytest.MonkeyPatch):
    """Each try costs something, and only the first of a process can enter."""
    inside, *gates = (admission(multimodal=False, max_sequences=1, tick=0.05) for _ in range(50))
    enter(inside)
    tries: Counter[Admission] = Counter()
    try_enter = Admission.try_enter

    def counted(gate: Admission, tokens: int, *, arrives_late: bool) -> bool:
        tries[gate] += 1
        return try_enter(gate, tokens, arrives_late=arrives_late)

    monkeypatch.setattr(Admission, "try_enter", counted)

    async def use() -> None:
        tasks = [asyncio.create_task(apass_through(gate)) for gate in gates]
        await asyncio.to_thread(eventually, lambda: tries[gates[0]] > 20, "the first to try")
        assert tries.total() < 20 * len(gates) / 2
        inside.leave(is_over=True)
        await asyncio.gather(*tasks)

    asyncio.run(use())


def test_a_forked_child_waits_behind_no_request_that_was_given_up(
    admission: Make, directory: ServerDirectory
):
    """It has the memory of its parent, where that request waits for ever."""
    inside, waiting = (admission(multimodal=False, max_sequences=1) for _ in range(2))
    enter(inside)
    assert not enters(waiting)
    child = os.fork()
    if not child:
        code = 1
        try:
            gate = admission(multimodal=False, max_sequences=1)
            enter(gate)
            gate.leave(is_over=True)
            code = 0
        finally:
            os._exit(code)
    waiting.close()
    inside.leave(is_over=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tickets(directory) == []


def test_the_files_are_for_the_requests_of_all_servers(
    admission: Make, directory: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of one server take them from those of another, but for its first one."""
    monkeypatch.setattr(place, "_MOST_SHOWN", 3)
    other = ServerDirectory(tmp_path / "other")
    other.create()
    endpoint = Endpoint("http://127.0.0.1:9/v1", "k", "m", engine="batched", max_sequences=1)
    there = [Admission(other, endpoint, None, 0.001) for _ in range(4)]
    here = [admission(multimodal=False, max_sequences=1) for _ in range(4)]
    assert list(map(enters, here)) == list(map(enters, there)) == [True, False, False, False]
    assert tickets(directory).count("waiting") == 3
    assert tickets(other).count("waiting") == 1
    for gate in there:
        gate.close()


class OwnQueue(RuleBasedStateMachine):
    """Requests of one program come, try, give up and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.home = TemporaryDirectory()
        self.directory = ServerDirectory(Path(self.home.name) / "key")
        self.directory.create()
        self.inside: list[Admission] = []
        self.waiting: list[Admission] = []

    @rule()
    def come(self) -> None:
        endpoint = Endpoint(
            base_url="http://127.0.0.1:9/v1",
            api_key="k",
            served_model="m",
            generation=1,
            engine="batched",
            max_sequences=SEATS,
        )
        self.waiting.append(Admission(self.directory, endpoint, None, 0.001))
        self.try_one(-1)

    @precondition(lambda self: self.waiting)
    @rule(number=integers(0, 9))
    def try_one(self, number: int) -> None:
        gate = self.waiting[number % len(self.waiting)]
        is_first = gate is self.waiting[0]
        if enters(gate):
            assert is_first, "it overtook an older one"
            self.inside.append(gate)
            self.waiting.remove(gate)

    @precondition(lambda self: self.waiting)
    @rule(number=integers(0, 9))
    def give_up(self, number: int) -> None:
        self.waiting.pop(number % len(self.waiting)).close()

    @precondition(lambda self: self.inside)
    @rule(number=integers(0, 9))
    def end(self, number: int) -> None:
        self.inside.pop(number % len(self.inside)).leave(is_over=True)

    @precondition(lambda self: self.inside)
    @rule(number=integers(0, 9), given_up=integers(0, 2))
    def come_before_others_have_seen_an_end(self, number: int, given_up: int) -> None:
        self.end(number)
        for _ in range(min(given_up, len(self.waiting))):
            self.give_up(0)
        self.come()

    @precondition(lambda self: self.inside)
    @rule(number=integers(0, 9))
    def ask_again(self, number: int) -> None:
        gate = self.inside.pop(number % len(self.inside))
        gate.leave(is_over=True)
        self.waiting.append(gate)
        self.try_one(-1)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        for gate in list(self.waiting):
            self.try_one(self.waiting.index(gate))
        assert len(self.inside) <= SEATS
        assert not self.waiting or len(self.inside) == SEATS

    def teardown(self) -> None:
        for gate in [*self.inside, *self.waiting]:
            gate.close()
        assert tickets(self.directory) == []
        self.home.cleanup()


class LongQueue(OwnQueue):
    """More wait than may be shown to others."""

    def __init__(self) -> None:
        super().__init__()
        self.most, place._MOST_SHOWN = place._MOST_SHOWN, 1

    @invariant()
    def few_are_shown(self) -> None:
        assert tickets(self.directory).count("waiting") <= 1

    def teardown(self) -> None:
        place._MOST_SHOWN = self.most
        super().teardown()


TestOwnQueue = OwnQueue.TestCase
TestLongQueue = LongQueue.TestCase
