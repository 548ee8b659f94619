"""Who may send: the decision over tickets, and the files that they are."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.server.locks import close_lock, open_lock, try_exclusive
from langchain_car_vllm.server.tickets import (
    Rules,
    Ticket,
    decide,
    kv_tokens,
    read_ticket,
    read_tickets,
    tear_up_abandoned,
)

MINE = Ticket("5", 100, "waiting")
SERIAL = Rules(serial_prefill=True)


@pytest.mark.parametrize(
    ("others", "rules", "verdict"),
    [
        ([], SERIAL, "enter"),
        ([Ticket("4", 1, "waiting")], Rules(), "behind"),
        ([Ticket("6", 1, "waiting")], Rules(), "enter"),
        ([Ticket("4", 1, "waiting", live=False)], Rules(), "enter"),
        ([Ticket("4", 1, "prefill")], SERIAL, "prefill"),
        ([Ticket("6", 1, "prefill")], SERIAL, "prefill"),
        ([Ticket("4", 1, "prefill")], Rules(), "enter"),
        ([Ticket("4", 1, "prefill", live=False)], SERIAL, "abandoned"),
        ([Ticket("4", 1, "answering")], SERIAL, "enter"),
        ([Ticket("4", 1, "answering", live=False)], Rules(room=100), "enter"),
        ([Ticket("4", 1, "answering")], Rules(room=199), "room"),
        ([Ticket("4", 1, "answering")], Rules(room=200), "enter"),
        ([Ticket("4", 1, "prefill", live=False)], Rules(room=100), "room"),
        ([Ticket("6", 1, "waiting")], Rules(room=100), "enter"),
        ([], Rules(room=99), "enter"),
        ([Ticket("4", 1, "answering")], Rules(sequences=1), "company"),
        ([Ticket("4", 1, "answering")], Rules(sequences=2), "enter"),
    ],
)
def test_decision(others: list[Ticket], rules: Rules, verdict: str):
    """First come, first served; one prompt is read at a time; what fits later waits."""
    assert decide(MINE, [MINE, *others], rules) == verdict


OUTER = Ticket("4", 100, "answering")


@pytest.mark.parametrize(
    ("others", "rules", "verdict"),
    [
        ([OUTER], Rules(sequences=1), "enter"),
        ([OUTER, Ticket("6", 1, "answering")], Rules(sequences=1), "company"),
        ([OUTER], Rules(room=200), "enter"),
        ([OUTER], Rules(room=199), "within"),
        ([OUTER, Ticket("6", 1, "answering")], Rules(room=200), "room"),
        ([OUTER, Ticket("6", 1, "answering")], Rules(room=199), "within"),
        ([Ticket("6", 1, "answering")], Rules(room=1), "room"),
    ],
)
def test_decision_within_another_request(others: list[Ticket], rules: Rules, verdict: str):
    """It does not wait for the request that it is made within, whose end waits for it."""
    assert decide(MINE, [MINE, *others], rules, outer={"4"}) == verdict


@given(st.integers(0, 2**32), st.integers(1, 8), st.booleans())
def test_everybody_is_served_and_nothing_overflows(seed: int, people: int, serial: bool):
    """Whatever the order of events: the rules hold at each step, in order, until all are done."""
    source = random.Random(seed)
    rules = Rules(serial, room=100, sequences=source.choice([None, 1, 3]))
    tickets = {str(n): Ticket(str(n), source.randint(1, 100), "waiting") for n in range(people)}
    entered: list[str] = []
    for _ in range(people * 40):
        if not tickets:
            break
        name = source.choice(sorted(tickets))
        ticket = tickets[name]
        if ticket.stage == "waiting":
            if decide(ticket, list(tickets.values()), rules) == "enter":
                tickets[name] = ticket._replace(stage="prefill")
                entered.append(name)
        elif ticket.stage == "prefill" and source.random() < 0.7:
            tickets[name] = ticket._replace(stage="answering")
        else:
            del tickets[name]
        inside = [t for t in tickets.values() if t.stage != "waiting"]
        assert kv_tokens([t.tokens for t in inside]) <= 100
        assert not serial or sum(t.stage == "prefill" for t in inside) <= 1
        assert rules.sequences is None or len(inside) <= rules.sequences
    assert not tickets
    assert entered == sorted(entered)


def test_names_are_read_back():
    """A ticket is its name; other files are none."""
    for ticket in (MINE, Ticket("000-1-2", 0, "prefill", 7)):
        assert read_ticket(ticket.name) == ticket
    for name in (
        "new-5",
        "5.1.1",
        "5.1.1.later",
        "5.x.1.waiting",
        ".1.1.waiting",
        "5.1.1.waiting.x",
    ):
        assert read_ticket(name) is None


def test_tickets_of_the_dead(tmp_path: Path):
    """They are torn up, but for those that died while this very server read their prompt."""
    folder = tmp_path / "tickets"
    folder.mkdir()
    tickets = [
        Ticket("1", 1, "waiting", 2),
        Ticket("2", 1, "prefill", 2),
        Ticket("3", 1, "prefill", 1),
        Ticket("4", 1, "answering", 2),
        Ticket("5", 1, "answering", 2),
    ]
    descriptors = [open_lock(folder / ticket.name) for ticket in tickets]
    (folder / "foreign").touch()
    assert try_exclusive(descriptors[4])
    for descriptor in descriptors[:4]:
        close_lock(descriptor)
    expected = [tickets[1]._replace(live=False), tickets[4]]
    assert sorted(read_tickets(folder, 2)) == expected
    assert {p.name for p in folder.iterdir()} == {"foreign", tickets[1].name, tickets[4].name}
    tear_up_abandoned(folder, 2)
    assert read_tickets(folder, 2) == [tickets[4]]
    close_lock(descriptors[4])
    assert read_tickets(folder, 2) == []
