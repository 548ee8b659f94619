"""Several servers that share a budget, in any order of events: starts, requests, looks, ends."""

import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.models.kv_cache import KvCache
from langchain_car_vllm.server import Policy, ServerSpec, directory_of
from langchain_car_vllm.server.client.ticket_file import TicketFile
from langchain_car_vllm.server.client.use_mark import UseMark
from langchain_car_vllm.server.client_record import request_mark
from langchain_car_vllm.server.command import Launch, started_with
from langchain_car_vllm.server.locks import close_lock, open_lock, try_exclusive
from langchain_car_vllm.server.memory import memory_for
from langchain_car_vllm.server.state import State, read_state
from langchain_car_vllm.server.supervisor import reservation
from langchain_car_vllm.server.supervisor.context import (
    NOT_QUEUED,
    SupervisorContext,
    SupervisorLock,
)
from langchain_car_vllm.server.supervisor.elastic_room import ElasticRoom
from langchain_car_vllm.server.tickets import Rules, Stage, Ticket, decide, kv_tokens

GB = 10**9
BUDGET = 24
POLICY = Policy(idle_tick=0.0, memory_tick=0.0, drain_patience=1000.0)
IMPATIENT = replace(POLICY, drain_patience=0.0)
STEPS, SERVERS, LOOKS = 150, 4, 6
numbers = itertools.count()


class SimulatedServer:
    """One key whose supervisor does one step at a time, in this process and without a server."""

    def __init__(self, source: random.Random, number: int) -> None:
        self._source = source
        self._policy = source.choice([POLICY, IMPATIENT])
        self._spec = ServerSpec(source=f"/model{number}", served_name=f"/model{number}")
        self.directory = directory_of(self._spec)
        self.directory.create()
        has_windows = source.random() < 0.6
        kv = KvCache(
            source.choice([20_480, 147_456, 163_840]),
            ((source.choice([40_960, 163_840]), 1024),) if has_windows else (),
            source.choice([0, 60_000_000]) if has_windows else 0,
        )
        self.full = memory_for(
            int(source.uniform(0.5, 6) * GB),
            kv,
            source.choice([4096, 32_768]),
            batched=True,
            chunked=False,
            budget=BUDGET * GB,
        )
        self.stage = "off"
        self.requests: list[tuple[TicketFile, Ticket]] = []

    @property
    def room(self) -> int:
        return self.elastic._memory.room or 0

    def start(self) -> None:
        self._lock = open_lock(self.directory.supervisor_lock)
        assert try_exclusive(self._lock)
        self.context = SupervisorContext(
            self.directory,
            self._spec,
            self._policy,
            predecessor=read_state(self.directory.state),
            held=SupervisorLock(self._lock, f"tag{next(numbers)}"),
        )
        self._queue = reservation._Queue(self.context, self.full)
        self.stage = "queued"

    def look(self, servers: list["SimulatedServer"]) -> None:
        """Do what the supervisor does next."""
        if self.stage == "queued":
            self._reserve()
        elif self.stage != "off":
            self._keep_room([server.context.state for server in servers if server.stage != "off"])
            if self.stage == "load" and self._source.random() < 0.5:
                self.context.update(phase="ready", ready_at=time.monotonic())
                self.stage = "ready"

    def _keep_room(self, live: list[State]) -> None:
        key = self.directory.key
        self.context.inbox.shrink_requested = any(key in state.shrinks for state in live)
        self.elastic.seconds_to_next_look()
        if not self.requests and any(key in state.victims for state in live):
            self.stop()

    def _reserve(self) -> None:
        granted = self._queue.try_reserve()
        if granted is None:
            return
        launch = Launch("model", True, Serving(engine="batched"), memory=self.full)
        launch = started_with(launch, granted)
        self.context.update(phase="load", serving=launch.serving)
        self.elastic = ElasticRoom(self.context, launch)
        self.stage = "load"

    def ask(self, tokens: int) -> bool:
        """Draw a ticket; tell whether the request may be sent."""
        serving, tickets = self.context.state.serving, [ticket for _, ticket in self.requests]
        order = f"{time.monotonic_ns():020d}-{os.getpid()}-{next(numbers)}"
        ticket = Ticket(order, tokens, "answering", self.context.state.generation)
        rules = Rules(room=serving.kv_room_tokens, sequences=serving.max_sequences)
        may_enter = decide(ticket, tickets, rules) == "enter"
        if may_enter:
            self.requests.append((TicketFile(str(self.directory.turns), ticket), ticket))
        return may_enter

    @contextmanager
    def ticket(self, tokens: int, stage: Stage) -> Iterator[None]:
        """Show a request, whether there is room for it or not."""
        order = f"{time.monotonic_ns():020d}-{os.getpid()}-{next(numbers)}"
        ticket = Ticket(order, tokens, stage, self.context.state.generation)
        file = TicketFile(str(self.directory.turns), ticket)
        yield
        file.tear_up()

    def answer(self) -> None:
        file, _ = self.requests.pop(self._source.randrange(len(self.requests)))
        file.tear_up()

    def stop(self) -> None:
        while self.requests:
            self.answer()
        self.context.update(phase="stopped", reservation=0, least=0, **NOT_QUEUED)
        close_lock(self._lock)
        close_lock(self.context.lease)
        self.stage = "off"

    def check(self) -> None:
        """What was promised holds."""
        if self.stage not in ("load", "ready"):
            return
        state, serving = self.context.state, self.context.state.serving
        assert serving.max_input_tokens == self.full.context
        assert serving.kv_room_tokens <= self.room
        assert kv_tokens([ticket.tokens for _, ticket in self.requests]) <= self.room
        assert state.least <= state.reservation == self.elastic._memory.needed


def total(servers: list[SimulatedServer]) -> int:
    return sum(s.context.state.reservation for s in servers if s.stage != "off")


def happen(server: SimulatedServer, source: random.Random, servers: list[SimulatedServer]) -> None:
    event = source.random()
    if server.stage == "off":
        server.start()
    elif event < 0.02 or (server.stage == "queued" and event < 0.2):
        server.stop()
    elif server.stage != "ready" or event < 0.5:
        server.look(servers)
    elif event < 0.75:
        server.ask(source.randint(1, server.full.context))
    elif server.requests:
        server.answer()


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_events(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The budget and every promise hold; at last the room is where requests wait for it."""
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(BUDGET))
    source = random.Random(seed)
    servers = [SimulatedServer(source, number) for number in range(SERVERS)]
    for _ in range(STEPS):
        happen(source.choice(servers), source, servers)
        assert total(servers) <= BUDGET * GB
        for each in servers:
            each.check()
    check_quiet(servers)
    ready = [server for server in servers if server.stage == "ready"]
    if ready:
        check_company_is_had(source.choice(ready), ready)
    for server in ready:
        server.stop()


def check_quiet(servers: list[SimulatedServer]) -> None:
    """Without requests and starts, everybody may use all of what is set aside for it."""
    for server in servers:
        while server.requests:
            server.answer()
        if server.stage == "queued":
            server.stop()
        if server.stage == "off":
            continue
        while server.stage != "ready":
            server.look(servers)
    for server in [server for server in servers if server.stage == "ready"] * LOOKS:
        server.look(servers)
        assert total(servers) <= BUDGET * GB
    assert all(
        server.context.state.serving.kv_room_tokens == server.room
        for server in servers
        if server.stage == "ready"
    )


def check_company_is_had(busy: SimulatedServer, ready: list[SimulatedServer]) -> None:
    """Where requests wait at one, it has its room in full, or the others have none to give."""
    assert busy.ask(1)
    with busy.ticket(1, "waiting"):
        for server in ready * LOOKS:
            server.look(ready)
            assert total(ready) <= BUDGET * GB
    others = [server.context.state for server in ready if server is not busy]
    free = BUDGET * GB - sum(state.reservation for state in others)
    most = busy.elastic._full
    if busy.context.state.reservation < most.needed and most.company:
        assert most.within(free).needed <= busy.context.state.reservation
        assert not sum(state.reservation - state.least for state in others if state.least)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimulatedServer]]:
    """Two servers that are ready, the later one with little of the company that it wants."""
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(BUDGET))
    servers = [SimulatedServer(random.Random(0), number) for number in range(2)]
    kv = KvCache(163_840)
    for server in servers:
        server.full = memory_for(
            2 * GB, kv, 32_768, batched=True, chunked=False, budget=BUDGET * GB
        )
        server.start()
        while server.stage != "ready":
            for each in servers:
                each.look(servers)
    yield servers
    for server in servers:
        server.stop()


def look_while_company_is_wanted(giver: SimulatedServer, taker: SimulatedServer) -> None:
    with taker.ticket(1, "answering"), taker.ticket(taker.room, "waiting"):
        for server in [taker, giver] * LOOKS:
            server.look([giver, taker])


def test_company_is_given_by_a_server_with_one_request(pair: list[SimulatedServer]):
    """What that one needs is kept in any case."""
    giver, taker = pair
    with giver.ticket(giver.full.context or 0, "answering"):
        look_while_company_is_wanted(giver, taker)
    assert giver.context.state.reservation < giver.full.needed
    assert taker.context.state.reservation == taker.elastic._full.needed


def test_requests_without_tickets_are_company(pair: list[SimulatedServer]):
    """Nobody knows how many a program has that is not looked after: it keeps the room, and has it.

    See `CAR_VLLM_MLX_ADMISSION`.
    """
    giver, taker = pair
    before = giver.context.state.reservation
    mark = UseMark(request_mark(giver.directory.clients))
    mark.show()
    look_while_company_is_wanted(giver, taker)
    assert giver.context.state.reservation == before
    assert not taker.context.state.shrinks
    mark.close()
    look_while_company_is_wanted(giver, taker)
    assert giver.context.state.reservation < before
    taker.stop()
    taker.start()
    mark.show()
    for _ in range(LOOKS):
        giver.look([giver])
    mark.close()
    assert giver.context.state.reservation == before


def test_room_of_a_long_request_is_not_asked_for_again_and_again(pair: list[SimulatedServer]):
    """It cannot be given before the answer has ended, so nobody looks for it meanwhile."""
    giver, taker = pair
    with giver.ticket((giver.full.context or 0) + 1, "answering"):
        look_while_company_is_wanted(giver, taker)
        assert not taker.context.state.shrinks
    look_while_company_is_wanted(giver, taker)
    assert taker.context.state.reservation == taker.elastic._full.needed


def test_room_that_cannot_be_given_yet_is_looked_at_as_rarely_as_it_is_wanted(
    pair: list[SimulatedServer],
):
    """Whoever wants it looks no sooner again, and an answer may take minutes."""
    giver, taker = pair
    key = giver.directory.key
    with giver.ticket(giver.room, "answering"):
        taker.context.update(shrinks={key: giver.context.state.least})
        giver.context.inbox.shrink_requested = True
        assert giver.elastic.seconds_to_next_look() == POLICY.memory_tick
