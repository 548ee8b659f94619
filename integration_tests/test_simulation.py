"""The simulation of several servers against two real ones, on the same conversations."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from benchmarks.simulate import (
    Conversation,
    Rates,
    Router,
    Server,
    Simulation,
    Turn,
    Workload,
    draw,
    prefix_affine,
    round_robin,
)
from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]
Chat = Callable[..., ChatVllmMlx]
SERVERS, CONVERSATIONS, SEED = 2, 12, 5
WORKLOAD = Workload(turns=3.0, prompt=60.0, answer=12.0, pause=1.0, load=0.7)
MEASURED = 3
LEAST, MOST = 0.5, 2.0
"""What a wait may be of the simulated one: the machine's two cores do other things as well."""


def question(number: int, words: float) -> HumanMessage:
    """Return a question of about so many tokens, unlike all others from its beginning."""
    return HumanMessage(f"{number}: a long story about" + " sea" * max(1, round(words)))


def answer(
    model: ChatVllmMlx, history: list[BaseMessage], tokens: float
) -> tuple[AIMessage, float]:
    """Return the answer, and the seconds until its first token."""
    began, first, whole = time.monotonic(), 0.0, None
    for chunk in model.stream(history, max_tokens=max(1, round(tokens))):
        first = first or time.monotonic() - began
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return AIMessage(whole.text), first


def measure(models: list[ChatVllmMlx]) -> Rates:
    """Return the rates of one server while the other works as well, in the simulation's tokens."""

    def ask(model: ChatVllmMlx, number: int) -> tuple[float, float]:
        began = time.monotonic()
        _, first = answer(model, [question(number, WORKLOAD.prompt)], 2 * WORKLOAD.answer)
        return first, time.monotonic() - began - first

    numbers = range(1000, 1000 + MEASURED * SERVERS)
    with ThreadPoolExecutor(SERVERS) as pool:
        found = list(pool.map(ask, [models[n % SERVERS] for n in numbers], numbers))
    prefill = median(first for first, _ in found)
    decode = median(rest for _, rest in found)
    return Rates(WORKLOAD.prompt / prefill, 2 * WORKLOAD.answer / decode, seats=1)


class Run:
    """Conversations that go to real servers, as the simulation's do.

    Attributes:
        waits: Seconds until the first token of each turn.
    """

    def __init__(self, models: list[ChatVllmMlx], router: Router) -> None:
        self.waits: list[float] = []
        self._models = models
        self._router = router
        self._servers = [Server(number) for number in range(len(models))]
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def hold(self, one: Conversation) -> None:
        """Hold a conversation, from its arrival to its end."""
        history: list[BaseMessage] = []
        time.sleep(max(0.0, self._began + one.arrival - time.monotonic()))
        for place, step in enumerate(one.steps):
            if place:
                time.sleep(step.pause)
            history.append(question(one.number, step.new))
            with self._lock:
                server = self._router(Turn(one.number, 0.0, 0.0, one.steps[place:]), self._servers)
                server.live += 1
            said, first = answer(self._models[server.number], history, step.answer)
            history.append(said)
            with self._lock:
                server.live -= 1
                self.waits.append(first)


@pytest.mark.parametrize("make", [round_robin, prefix_affine], ids=["round robin", "affine"])
def test_two_servers_wait_as_simulated(
    chat: Chat, fast_cpu: dict[str, str], make: Callable[[], Router]
):
    """The mean wait for a first token is that of the simulation, whose rates were measured here."""
    one_core = {"OPENBLAS_NUM_THREADS": "1"}
    models = [
        chat(
            server_env={**fast_cpu, **one_core, "LANE": str(n)}, server_args=["--max-num-seqs", "1"]
        )
        for n in range(SERVERS)
    ]
    for model in models:
        model.invoke("Hello")
    rates = measure(models)
    conversations = draw(CONVERSATIONS, SERVERS, WORKLOAD, rates, SEED)
    simulation = Simulation(SERVERS, make(), rates)
    simulation.run(conversations)
    run = Run(models, make())
    with ThreadPoolExecutor(CONVERSATIONS) as pool:
        list(pool.map(run.hold, conversations))
    assert len(run.waits) == len(simulation.waits)
    real, simulated = mean(run.waits), mean(simulation.waits)
    print(f"{rates}: {len(run.waits)} turns, mean wait {real:.2f} s, simulated {simulated:.2f} s")
    assert LEAST * simulated < real < MOST * simulated
