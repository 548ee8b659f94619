"""Who makes room for whom: the decision on memory, for any neighbours."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.server.supervisor.memory_decision import (
    Neighbour,
    company_to_give,
    decide,
)

MINE = (50.0, "mine")
BUDGET = 100


@st.composite
def neighbours(draw: st.DrawFn) -> list[Neighbour]:
    """Servers within the budget, and starts that wait, each with victims of its own."""
    servers: list[Neighbour] = []
    left = BUDGET
    for number in range(draw(st.integers(0, 6))):
        size = draw(st.integers(1, 40))
        if size > left:
            break
        left -= size
        is_ready, is_leaving = draw(st.sampled_from([(True, False), (False, True), (False, False)]))
        servers.append(
            Neighbour(
                key=f"server{number}",
                reservation=size,
                is_evictable=is_ready,
                is_leaving=is_leaving,
                is_idle=is_ready and draw(st.booleans()),
                spare=0 if is_leaving else draw(st.integers(0, size - 1)),
                order=(draw(st.booleans()), draw(st.floats(0, 100))),
            )
        )
    free = [server.key for server in servers if server.is_evictable or server.is_leaving]
    starts = []
    for number in range(draw(st.integers(0, 3))):
        victims = draw(st.lists(st.sampled_from(free), unique=True)) if free else []
        free = [key for key in free if key not in victims]
        place = (draw(st.floats(0, 100)), f"start{number}")
        needed = draw(st.integers(1, BUDGET))
        starts.append(
            Neighbour(f"start{number}", place=place, needed=needed, victims=tuple(victims))
        )
    return [*servers, *starts]


@given(needed=st.integers(0, BUDGET), others=neighbours())
def test_decision_keeps_every_promise(needed: int, others: list[Neighbour]):
    """The budget holds, earlier starts keep what they were promised, nobody goes in vain."""
    decision = decide(needed, MINE, BUDGET, others)
    size = {other.key: other.reservation for other in others}
    earlier = [o for o in others if o.place is not None and o.place < MINE]
    taken = {key for other in earlier for key in other.victims}
    promised = sum(max(0, o.needed - sum(size[k] for k in o.victims)) for o in earlier)
    left = BUDGET - sum(size.values()) - promised
    assert decision.free == left
    assert decision.is_granted == (needed <= left)
    chosen = decision.victims
    assert not set(chosen) & taken
    assert all(o.is_evictable or o.is_leaving for o in others if o.key in chosen)
    spare = {o.key: o.spare for o in others if o.key not in taken}
    assert all(size[k] - spare[k] <= kept < size[k] for k, kept in decision.shrinks.items())
    assert not set(decision.shrinks) & set(chosen)
    gained = sum(size[key] for key in chosen)
    gained += sum(size[key] - kept for key, kept in decision.shrinks.items())
    if decision.is_granted:
        assert not chosen
        assert not decision.shrinks
    elif chosen or decision.shrinks:
        assert left + gained >= needed
        without = left + sum(spare.values()) + sum(size[k] - spare.get(k, 0) for k in chosen)
        assert all(without - size[k] + spare.get(k, 0) < needed for k in chosen)
    else:
        rest = [o for o in others if o.key not in taken]
        most = sum(o.reservation if o.is_evictable or o.is_leaving else o.spare for o in rest)
        assert left + most < needed


@given(needed=st.integers(0, BUDGET), others=neighbours(), is_impatient=st.booleans())
def test_nobody_is_ended_where_less_company_would_do(
    needed: int, others: list[Neighbour], is_impatient: bool
):
    """Who fits beside what the others need at least ends none of them, and later idle ones only."""
    decision = decide(needed, MINE, BUDGET, others, is_impatient=is_impatient)
    taken = {k for o in others if o.place is not None and o.place < MINE for k in o.victims}
    spare = sum(o.spare for o in others if o.key not in taken)
    if decision.free + spare >= needed:
        unused = {o.key for o in others if o.is_idle or o.is_leaving}
        assert set(decision.victims) <= (unused if is_impatient else set())
        assert decision.is_granted or decision.shrinks or decision.victims


@given(needed=st.integers(0, BUDGET), others=neighbours())
def test_impatience_ends_no_idle_server_in_vain(needed: int, others: list[Neighbour]):
    """One goes only where it would be asked at first already, or where the idle ones suffice."""
    first = decide(needed, MINE, BUDGET, others)
    later = decide(needed, MINE, BUDGET, others, is_impatient=True)
    assert (later.is_granted, later.free) == (first.is_granted, first.free)
    assert bool(first.victims or first.shrinks) == bool(later.victims or later.shrinks)
    chosen = [o for o in others if o.key in later.victims]
    unused = [o for o in chosen if o.is_idle or o.is_leaving]
    if unused != chosen:
        assert {o.key for o in unused} <= {*first.victims}
    size = {o.key: o.reservation for o in others}
    gained = sum(size[key] for key in later.victims)
    gained += sum(size[key] - kept for key, kept in later.shrinks.items())
    if later.victims or later.shrinks:
        assert later.free + gained >= needed


@given(st.integers(-9, 99), st.dictionaries(st.text(max_size=2), st.integers(0, 40), max_size=4))
def test_company_comes_from_all_alike(lacking: int, spare: dict[str, int]):
    """It is what is lacking, as far as there is so much, and nobody gives more than it can."""
    given_by = company_to_give(lacking, spare)
    wanted, most = max(0, min(lacking, sum(spare.values()))), sum(spare.values())
    assert wanted <= sum(given_by.values()) <= wanted + len(spare)
    for key, size in given_by.items():
        assert 0 < size <= spare[key]
        assert abs(size - spare[key] * wanted / most) < 1


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=12))
def test_starts_one_after_the_other_stay_within_the_budget(sizes: list[tuple[int, int]]):
    """Each takes what is left, others shrink or go as decided: the sum never exceeds the budget."""
    servers: dict[str, Neighbour] = {}
    for number, (least, company) in enumerate(sizes):
        decision = decide(least, MINE, BUDGET, list(servers.values()))
        for key in decision.victims:
            del servers[key]
        for key, kept in decision.shrinks.items():
            less = servers[key].reservation - kept
            servers[key] = replace(servers[key], reservation=kept, spare=servers[key].spare - less)
        decision = decide(least, MINE, BUDGET, list(servers.values()))
        assert decision.is_granted
        given = min(least + company, decision.free)
        servers[f"s{number}"] = Neighbour(
            f"s{number}",
            given,
            spare=given - least,
            is_evictable=True,
            is_idle=True,
            order=(False, float(number)),
        )
        assert sum(server.reservation for server in servers.values()) <= BUDGET


@given(needed=st.integers(0, BUDGET), others=neighbours())
def test_busy_ones_go_only_where_idle_ones_do_not_suffice(needed: int, others: list[Neighbour]):
    """Whoever is served is asked to make room last."""
    decision = decide(needed, MINE, BUDGET, others)
    taken = {k for o in others if o.place is not None and o.place < MINE for k in o.victims}
    unused = [o for o in others if (o.is_idle or o.is_leaving) and o.key not in taken]
    idle = {o.key: o.reservation for o in unused}
    spare = sum(o.spare for o in others if o.key not in (*taken, *idle))
    if not set(decision.victims) <= set(idle):
        assert decision.free + spare + sum(idle.values()) < needed


def server(key: str, size: int, used: float, *, is_idle: bool = True) -> Neighbour:
    return Neighbour(key, size, is_evictable=True, is_idle=is_idle, order=(False, used))


def test_least_recently_used_goes_first():
    """Of idle servers that would each suffice, the one goes that was used longest ago."""
    others = [server("b", 40, 2.0), server("a", 40, 1.0)]
    assert decide(50, MINE, BUDGET, others).victims == ("a",)


def test_small_server_that_helps_nobody_stays():
    """One that cannot make enough room is not sent away, however long it was unused."""
    others = [server("small", 5, 1.0), server("big", 60, 2.0)]
    assert decide(60, MINE, BUDGET, others).victims == ("big",)
    others = [server("small", 5, 1.0), server("busy", 90, 2.0, is_idle=False)]
    assert decide(50, MINE, BUDGET, others).victims == ("busy",)


def test_one_that_is_leaving_already_is_waited_for_alone():
    """Nobody else is sent away while a server that was asked saves its cache."""
    leaving = Neighbour("leaving", 50, is_leaving=True)
    assert decide(40, MINE, BUDGET, [server("a", 50, 1.0), leaving]).victims == ("leaving",)


def test_small_start_passes_one_that_waits_for_its_victims():
    """What fits beside the promise need not wait; what would take of it has to."""
    others = [server("a", 60, 1.0), Neighbour("e", place=(1.0, "e"), needed=70, victims=("a",))]
    assert decide(30, MINE, BUDGET, others).is_granted
    assert not decide(31, MINE, BUDGET, others).is_granted


def test_impatient_start_asks_all_that_could_help():
    """Whoever ends first makes room."""
    others = [server("a", 50, 1.0, is_idle=False), server("b", 50, 2.0, is_idle=False)]
    assert decide(40, MINE, BUDGET, others).victims == ("a",)
    assert decide(40, MINE, BUDGET, others, is_impatient=True).victims == ("a", "b")
    others.append(server("unused", 5, 3.0))
    assert "unused" not in decide(40, MINE, 105, others, is_impatient=True).victims


def test_impatient_start_takes_an_idle_server_rather_than_wait_for_company():
    """Requests under way may keep room for company for long."""
    busy = replace(server("busy", 60, 1.0, is_idle=False), spare=30)
    others = [busy, server("idle", 40, 2.0)]
    assert decide(30, MINE, BUDGET, others).shrinks == {"busy": 30}
    impatient = decide(30, MINE, BUDGET, others, is_impatient=True)
    assert (impatient.victims, dict(impatient.shrinks)) == (("idle",), {})
    others[1] = server("idle", 10, 2.0)
    assert decide(50, MINE, BUDGET, others, is_impatient=True).shrinks == {"busy": 40}
