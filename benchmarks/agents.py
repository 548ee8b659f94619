"""An agent's tenth step against its second, on the real server, with the default settings.

Turns shorter than a chunk of a prefill (256 tokens with linear attention, else 512) must be as flat
as long ones.
"""

import http.client
import time
from collections.abc import Sequence
from statistics import median
from urllib.parse import urlsplit

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from benchmarks.home import fast_cpu, real, smollm2, tiny
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import directory_of, ensure_server
from langchain_car_vllm.server.locks import close_lock, is_held, open_lock

TURNS = 10
ROUNDS = 3
SHORT_ROUNDS = 9
"""Of the tiny models, whose turns take a tenth of a second: other programs double single ones."""
RESTARTS = 3
BAR = 1.5
_SYSTEM = "You plan journeys, step by step, and keep to what was said before. " * 8
_STEP = "Step {step} of {name}: name the next city, and say in a few words what to see there. "
_SHORT = 1
# Sentences of a turn, and the tokens that they come to.
_LENGTHS = {1: 30, 4: 100, 13: 300}
_SIMPLE_LENGTH = 13
_PATIENCE = 60.0


def look_up(city: str) -> str:
    """Look up what there is to see in a city."""
    return city


def book(city: str, nights: int) -> str:
    """Book a room."""
    return f"{city}: {nights}"


class Agent:
    """A conversation that grows by the same amount each turn.

    Args:
        model: Who answers.
        name: Makes the conversation one of its own.
        length: How many sentences a turn adds.
    """

    def __init__(self, model: ChatVllmMlx, name: str, length: int) -> None:
        self._name = name
        self._length = length
        self.use(model)
        self.history: list[BaseMessage] = [SystemMessage(f"{name}. {_SYSTEM}")]
        self.asked: list[list[BaseMessage]] = []
        self.answers: list[AIMessage] = []

    def use(self, model: ChatVllmMlx) -> None:
        """Have another model go on."""
        self._bound = model.bind_tools([look_up, book])

    def step(self) -> float:
        """Take a turn and return the seconds to its first token."""
        step = _STEP.format(step=len(self.asked), name=self._name)
        self.history.append(HumanMessage(step * self._length))
        self.asked.append(list(self.history))
        first, answer = self.ask(self.history)
        self.history.append(answer)
        self.answers.append(answer)
        return first

    def ask(self, history: list[BaseMessage]) -> tuple[float, AIMessage]:
        """Return the seconds to the first token, and the answer."""
        began, first, whole = time.perf_counter(), None, None
        for chunk in self._bound.stream(history):
            if first is None:
                first = time.perf_counter() - began
            whole = chunk if whole is None else whole + chunk
        assert first is not None
        assert whole is not None
        return first, AIMessage(whole.content, additional_kwargs=whole.additional_kwargs)


def _turns(
    model: ChatVllmMlx, length: int, rounds: int = ROUNDS
) -> tuple[list[float], float, list[Agent]]:
    """Return the median of each turn, the last turn against the second, and the conversations."""
    agents = [Agent(model, f"Journey {number}", length) for number in range(rounds)]
    times = [[agent.step() for _ in range(TURNS)] for agent in agents]
    turns = [median(turn) for turn in zip(*times, strict=True)]
    return turns, median(each[-1] / each[1] for each in times), agents


def _row(what: str, turns: Sequence[float], *checks: Check, **series: list[float]) -> Row:
    return Row(
        section="agents",
        what=what,
        unit="s to the first token",
        figures={"turn 1": turns[0], "turn 2": turns[1], f"turn {TURNS}": turns[-1]},
        checks=checks,
        series={"engine batched": list(turns), **series},
    )


def _text() -> list[Row]:
    settings = {"temperature": 0, "max_tokens": 8, "server_env": fast_cpu()}
    model = ChatVllmMlx(model=smollm2(), **settings)
    model.warm_up()
    turns, grown, agents = _turns(model, _SHORT)
    first = _row(
        f"agent of {TURNS} turns, SmolLM2-135M",
        turns,
        Check(f"turn {TURNS} against turn 2", grown, BAR),
    )
    again = ChatVllmMlx(model=model.model, keep_alive=1, **settings)
    return [first, _restarts(agents[-1], again, "SmolLM2-135M")]


def _restarts(agent: Agent, model: ChatVllmMlx, name: str) -> Row:
    """Go on with a conversation after idle stops, without the time that the start takes."""
    agent.use(model)
    before, after = [], []
    for _ in range(RESTARTS):
        before.append(agent.step())
        _wait_until_stopped(model)
        model.warm_up()
        after.append(agent.step())
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    return Row(
        section="agents",
        what=f"the same conversation after an idle stop and a restart, {name}",
        unit="s to the first token",
        figures={"before": median(before), "after": median(after)},
        checks=(Check("after against before", median(ratios), BAR),),
    )


def _wait_until_stopped(model: ChatVllmMlx) -> None:
    descriptor = open_lock(directory_of(model._spec()).supervisor_lock)
    deadline = time.monotonic() + _PATIENCE
    while is_held(descriptor):
        assert time.monotonic() < deadline, "the server did not stop"
        time.sleep(0.05)
    close_lock(descriptor)


def _multimodal(architecture: str, template: str, *, thinks: bool) -> list[Row]:
    settings = {"temperature": 0, "max_tokens": 12, "server_env": fast_cpu()}
    if thinks:
        settings |= {"reasoning": True, "thinking_budget": 6}
    folder = tiny(architecture, template)
    simple = ChatVllmMlx(model=folder, engine="simple", **settings)
    simple.warm_up()
    queueing, _, _ = _turns(simple, _SIMPLE_LENGTH, rounds=1)
    simple.unload(force=True)
    model = ChatVllmMlx(model=folder, **settings)
    model.warm_up()
    name, found = f"tiny {architecture}{' that thinks' if thinks else ''}", []
    for length, tokens in _LENGTHS.items():
        turns, grown, agents = _turns(model, length, SHORT_ROUNDS)
        found.append(
            _row(
                f"agent of {TURNS} turns of {tokens} tokens, {name}",
                turns,
                Check(f"turn {TURNS} against turn 2", grown, BAR),
                Check("answers that differ from single requests", _differing(model, agents[-1]), 0),
                **({"engine simple": queueing} if length == _SIMPLE_LENGTH else {}),
            )
        )
    again = ChatVllmMlx(model=folder, keep_alive=1, **settings)
    return [*found, _restarts(agents[-1], again, name)]


def _differing(model: ChatVllmMlx, agent: Agent) -> int:
    """Return how many answers are others when the server remembers nothing."""
    differing = 0
    for asked, answered in zip(agent.asked, agent.answers, strict=True):
        _clear_cache(model)
        _, alone = agent.ask(asked)
        differing += _said(alone) != _said(answered)
    return differing


def _said(message: BaseMessage) -> tuple[str, str]:
    return message.text, str(message.additional_kwargs.get("reasoning_content"))


def _clear_cache(model: ChatVllmMlx) -> None:
    endpoint = ensure_server(model._spec(engine=model.engine))
    connection = http.client.HTTPConnection(urlsplit(endpoint.base_url).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    connection.request("DELETE", "/v1/cache", headers=headers)
    assert connection.getresponse().status == http.HTTPStatus.OK
    connection.close()


def rows() -> list[Row]:
    """Measure."""
    with real():
        return [
            *_text(),
            *_multimodal("qwen3_5", "qwen3.6", thinks=True),
            *_multimodal("gemma4", "plain", thinks=False),
        ]
