"""How long requests wait when several servers share them: a simulation of discrete events.

    python -m benchmarks.simulate                   # 1 to 256 servers, three ways of routing
    python -m benchmarks.simulate --servers 1 2 4 --load 0.8 --seed 7

Conversations come and go at random; each turn sends the whole history. A server reads one prompt at
a time, first come first served, and then answers as many at once as it has seats. What a server has
read of a conversation before it need not read again. Rates are given, not measured: take those of
`car-vllm bench`.
"""

import argparse
import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles

MOST_TURNS = 40
Router = Callable[["Turn", Sequence["Server"]], "Server"]


@dataclass(frozen=True)
class Workload:
    """What comes in.

    Attributes:
        turns: Mean turns of a conversation.
        prompt: Mean new tokens of a turn; they are distributed exponentially.
        answer: Mean tokens of an answer; likewise.
        pause: Mean seconds between an answer and the next turn.
        load: Share of all servers' capacity that is asked for, if no prefix were found again.
    """

    turns: float = 6.0
    prompt: float = 400.0
    answer: float = 200.0
    pause: float = 5.0
    load: float = 0.7


@dataclass(frozen=True)
class Rates:
    """What a server does.

    Attributes:
        prefill: Tokens of a prompt a second.
        decode: Tokens of one answer a second.
        seats: Answers at once.
    """

    prefill: float = 1500.0
    decode: float = 60.0
    seats: int = 8


@dataclass(frozen=True)
class Step:
    """What a user says once, and how long after the answer before.

    Attributes:
        new: Tokens of a prompt.
        answer: Tokens that it gets.
        pause: Seconds after the answer before.
    """

    new: float
    answer: float
    pause: float


@dataclass(frozen=True)
class Conversation:
    """A user who comes at some moment and says some things.

    Attributes:
        number: Which.
        arrival: Seconds from the beginning.
        steps: What is said.
    """

    number: int
    arrival: float
    steps: tuple[Step, ...]


@dataclass
class Turn:
    """One request.

    Attributes:
        conversation: Whose turn it is.
        arrival: When it came.
        history: Tokens that were said before.
        steps: What is said now, and what follows.
    """

    conversation: int
    arrival: float
    history: float
    steps: tuple[Step, ...]


@dataclass
class Server:
    """A server and its queue.

    Attributes:
        number: Which.
        queue: Who waits for the prompt to be read.
        live: Requests that it has, waiting ones among them.
        answering: Answers under way.
        reading: Whether a prompt is being read.
        known: Tokens that it has read of each conversation.
    """

    number: int
    queue: deque[Turn] = field(default_factory=deque)
    live: int = 0
    answering: int = 0
    reading: bool = False
    known: dict[int, float] = field(default_factory=dict)


def round_robin() -> Router:
    """Return a router that takes the servers in turn."""
    count = itertools.count()
    return lambda _, servers: servers[next(count) % len(servers)]


def least_busy() -> Router:
    """Return a router that takes the server with the fewest requests."""
    return lambda _, servers: min(servers, key=lambda server: (server.live, server.number))


def prefix_affine(slack: int = 4) -> Router:
    """Return a router that keeps a conversation where it was, unless that is much busier.

    Args:
        slack: How many requests more than the least busy server it may have.
    """
    homes: dict[int, int] = {}

    def route(turn: Turn, servers: Sequence[Server]) -> Server:
        calm = min(servers, key=lambda server: (server.live, server.number))
        home = servers[homes.get(turn.conversation, calm.number)]
        chosen = home if home.live <= calm.live + slack else calm
        homes[turn.conversation] = chosen.number
        return chosen

    return route


ROUTERS: dict[str, Callable[[], Router]] = {
    "round robin": round_robin,
    "least busy": least_busy,
    "prefix-affine": prefix_affine,
}


class Simulation:
    """Servers, what comes in, and the clock.

    Args:
        count: Number of servers.
        router: Decides who answers.
        rates: What a server does.

    Attributes:
        waits: Seconds until the first token of each turn.
    """

    def __init__(self, count: int, router: Router, rates: Rates) -> None:
        self.waits: list[float] = []
        self._servers = [Server(number) for number in range(count)]
        self._router = router
        self._rates = rates
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def run(self, conversations: Iterable[Conversation]) -> None:
        """Let conversations come in, and run until all are over."""
        for one in conversations:
            self._send(Turn(one.number, one.arrival, 0.0, one.steps))
        while self._events:
            time, _, action = heapq.heappop(self._events)
            action(time)

    def _at(self, time: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    def _send(self, turn: Turn) -> None:
        self._at(turn.arrival, lambda now: self._arrive(turn, now))

    def _arrive(self, turn: Turn, now: float) -> None:
        server = self._router(turn, self._servers)
        server.live += 1
        server.queue.append(turn)
        self._read_next(server, now)

    def _read_next(self, server: Server, now: float) -> None:
        if server.reading or not server.queue or server.answering >= self._rates.seats:
            return
        turn = server.queue.popleft()
        server.reading = True
        known = min(server.known.get(turn.conversation, 0.0), turn.history)
        seconds = (turn.history - known + turn.steps[0].new) / self._rates.prefill
        self._at(now + seconds, lambda time: self._begin(server, turn, time))

    def _begin(self, server: Server, turn: Turn, now: float) -> None:
        server.reading = False
        server.answering += 1
        self.waits.append(now - turn.arrival)
        server.known[turn.conversation] = turn.history + turn.steps[0].new + turn.steps[0].answer
        seconds = turn.steps[0].answer / self._rates.decode
        self._at(now + seconds, lambda time: self._end(server, turn, time))
        self._read_next(server, now)

    def _end(self, server: Server, turn: Turn, now: float) -> None:
        server.answering -= 1
        server.live -= 1
        said, *left = turn.steps
        if left:
            arrival, history = now + left[0].pause, turn.history + said.new + said.answer
            self._send(Turn(turn.conversation, arrival, history, tuple(left)))
        self._read_next(server, now)


def draw(
    count: int, servers: int, workload: Workload, rates: Rates, seed: int
) -> list[Conversation]:
    """Return what so many servers are asked: the same seed gives the same conversations."""
    dice = random.Random(seed)
    interval = seconds_for_conversation(workload, rates) / (servers * workload.load)
    found, now = [], 0.0
    for number in range(count):
        now += dice.expovariate(1 / interval)
        turns = 1 + min(int(dice.expovariate(1 / (workload.turns - 1))), MOST_TURNS)
        steps = tuple(
            Step(
                *(
                    dice.expovariate(1 / m)
                    for m in (workload.prompt, workload.answer, workload.pause)
                )
            )
            for _ in range(turns)
        )
        found.append(Conversation(number, now, steps))
    return found


def seconds_for_conversation(workload: Workload, rates: Rates) -> float:
    """Return the seconds of a server that a conversation takes where no prefix is found again."""
    mean_history = (workload.turns - 1) / 2 * (workload.prompt + workload.answer)
    reading = workload.turns * (mean_history + workload.prompt) / rates.prefill
    answering = workload.turns * workload.answer / rates.decode / rates.seats
    return max(reading, answering)


def capacity(rates: Rates, workload: Workload, overhead: float = 0.001) -> float:
    """Return the turns a second that one server can take, reading only what is new.

    Args:
        rates: What the server does.
        workload: What comes in.
        overhead: Seconds of the client for each turn.
    """
    reading = workload.prompt / rates.prefill
    answering = workload.answer / rates.decode / rates.seats
    return 1 / (max(reading, answering) + overhead)


def table(counts: Iterable[int], workload: Workload, rates: Rates, seed: int) -> list[dict]:
    """Return a row for each number of servers and each router."""
    rows = []
    for count in counts:
        conversations = draw(max(20, 400 // count) * count, count, workload, rates, seed)
        for name, make in ROUTERS.items():
            simulation = Simulation(count, make(), rates)
            simulation.run(conversations)
            waits = simulation.waits
            rows.append(
                {
                    "servers": count,
                    "router": name,
                    "turns": len(waits),
                    "mean": mean(waits),
                    "median": quantiles(waits, n=20)[9],
                    "p95": quantiles(waits, n=20)[18],
                }
            )
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Draw the 95th percentile by number of servers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name in ROUTERS:
        found = [row for row in rows if row["router"] == name]
        axes.plot([r["servers"] for r in found], [r["p95"] for r in found], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("servers, at the same load each")
    axes.set_ylabel("seconds to the first token, 95th percentile")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Print the table, and write it and its plot where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--servers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256]
    )
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--prefill", type=float, default=1500.0, help="tokens of a prompt a second")
    parser.add_argument("--decode", type=float, default=60.0, help="tokens of an answer a second")
    parser.add_argument("--seats", type=int, default=8, help="answers at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for simulate.json and simulate.svg")
    given = parser.parse_args()
    workload = Workload(load=given.load)
    rates = Rates(given.prefill, given.decode, given.seats)
    rows = table(given.servers, workload, rates, given.seed)
    print(f"one server takes {capacity(rates, workload):.2f} turns/s that read only what is new")
    for row in rows:
        print(
            f"{row['servers']:4} servers  {row['router']:14} median {row['median']:7.2f} s  "
            f"p95 {row['p95']:7.2f} s"
        )
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "simulate.json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, given.output / "simulate.svg")


if __name__ == "__main__":
    main()
