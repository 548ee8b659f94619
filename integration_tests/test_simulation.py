"""The simulation of several servers against two real ones, on the same conversations."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import mean, median
from typing import NamedTuple

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from benchmarks.simulate import (
    Conversation,
    Rates,
    Router,
    Server,
    Simulation,
    Step,
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


class Said(NamedTuple):
    """An answer.

    Attributes:
        message: Its text.
        tokens: How many it has, which may be fewer than were asked for.
        first: Seconds until its first token.
        rest: Seconds from there to its end.
    """

    message: AIMessage
    tokens: int
    first: float
    rest: float


def answer(model: ChatVllmMlx, history: list[BaseMessage], tokens: float) -> Said:
    """Return what a model says."""
    began, first, whole = time.monotonic(), 0.0, None
    for chunk in model.stream(history, max_tokens=max(1, round(tokens))):
        first = first or time.monotonic() - began
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.usage_metadata is not None
    rest = time.monotonic() - began - first
    return Said(AIMessage(whole.text), whole.usage_metadata["output_tokens"], first, rest)


def measure(models: list[ChatVllmMlx]) -> Rates:
    """Return the rates of one server while the other works as well, in the simulation's tokens."""

    def ask(model: ChatVllmMlx, number: int) -> Said:
        return answer(model, [question(number, WORKLOAD.prompt)], 2 * WORKLOAD.answer)

    numbers = range(1000, 1000 + MEASURED * SERVERS)
    with ThreadPoolExecutor(SERVERS) as pool:
        found = list(pool.map(ask, [models[n % SERVERS] for n in numbers], numbers))
    return Rates(WORKLOAD.prompt / median(said.first for said in found), rate_of(found), seats=1)


def rate_of(answers: Iterable[Said]) -> float:
    """Return how many tokens of an answer a second brings."""
    said = list(answers)
    return sum(each.tokens for each in said) / sum(each.rest for each in said)


class Run:
    """Conversations that go to real servers, as the simulation's do.

    Attributes:
        answers: Those of each conversation.
    """

    def __init__(self, models: list[ChatVllmMlx], router: Router) -> None:
        self.answers: defaultdict[int, list[Said]] = defaultdict(list)
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
            said = answer(self._models[server.number], history, step.answer)
            history.append(said.message)
            with self._lock:
                server.live -= 1
                self.answers[one.number].append(said)

    def as_held(self, one: Conversation) -> Conversation:
        """Return a conversation with answers as long as they were: a model may say less."""
        answers = self.answers[one.number]
        steps = zip(one.steps, answers, strict=True)
        return replace(one, steps=tuple(_shortened(step, said) for step, said in steps))


def _shortened(step: Step, said: Said) -> Step:
    return replace(step, answer=said.tokens)


@pytest.mark.parametrize("make", [round_robin, prefix_affine], ids=["round robin", "affine"])
def test_two_servers_wait_as_simulated(
    chat: Chat, fast_cpu: dict[str, str], make: Callable[[], Router]
):
    """The mean wait for a first token is that of the simulation, whose rates were measured here.

    A server works faster while the other has nothing to do, and a model may end an answer early. So
    what a second brings, and how long answers are, is taken from the conversations themselves.
    """
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
    run = Run(models, make())
    with ThreadPoolExecutor(CONVERSATIONS) as pool:
        list(pool.map(run.hold, conversations))
    answers = [said for each in run.answers.values() for said in each]
    rates = replace(rates, decode=rate_of(answers))
    simulation = Simulation(SERVERS, make(), rates)
    simulation.run([run.as_held(one) for one in conversations])
    assert len(answers) == len(simulation.waits)
    real, simulated = mean(said.first for said in answers), mean(simulation.waits)
    print(f"{rates}: {len(answers)} turns, mean wait {real:.2f} s, simulated {simulated:.2f} s")
    assert LEAST * simulated < real < MOST * simulated
