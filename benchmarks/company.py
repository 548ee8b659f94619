"""Six agents at once, and a short question while a document is read.

Of models that take media, and of a text model with recurrent layers. The server reads one prompt at
a time, short ones between two parts of a long one, and answers all together. One request after the
other would be right as well, and slower: that is what it is measured against.
"""

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from statistics import median
from unittest import mock

from benchmarks.agents import Agent
from benchmarks.home import fast_cpu, real, tiny, tiny_text
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server import ensure_server
from langchain_car_vllm.server.client import admission
from langchain_car_vllm.server.client.status_look import StatusLook
from langchain_car_vllm.server.tickets import Rules

AGENTS, TURNS, ROUNDS = 6, 3, 3
QUESTIONS = 5
TOKENS = 48
_LENGTHS = (1, 4, 13)
_SHARE = 0.5
_TOGETHER, _WHOLE = "together", "whole turns"
_ALONE, _MEANWHILE, _REST = "alone", "meanwhile", "rest of the document"
_WORDS = 6000
_PATIENCE = 60.0
_QUESTION = "Question {number}: how far is the moon?"


@contextmanager
def _whole_turns() -> Iterator[None]:
    """Have each request keep its turn to its end."""
    with mock.patch.object(admission, "rules_of", return_value=Rules(sequences=1)):
        yield


def _run(model: ChatVllmMlx, numbers: Iterator[int]) -> tuple[float, float]:
    """Return the median seconds to the first token, and the seconds of all turns of all agents."""
    agents = [
        Agent(model, f"Journey {next(numbers)}", length)
        for length in itertools.islice(itertools.cycle(_LENGTHS), AGENTS)
    ]
    with ThreadPoolExecutor(AGENTS) as pool:
        began = time.perf_counter()
        firsts = list(pool.map(lambda agent: [agent.step() for _ in range(TURNS)], agents))
        whole = time.perf_counter() - began
    return median(itertools.chain.from_iterable(firsts)), whole


def _first_token(model: ChatVllmMlx, text: str) -> float:
    """Return the seconds to the first token."""
    began = time.perf_counter()
    with closing(model.stream(text)) as chunks:
        next(chunk for chunk in chunks if chunk.text or chunk.additional_kwargs)
        return time.perf_counter() - began


def _works(endpoint: Endpoint) -> bool:
    """Tell whether the server has a request."""
    look = StatusLook(endpoint)
    look.wait(_PATIENCE)
    return bool(look.requests)


def _ask_meanwhile(model: ChatVllmMlx, number: int) -> tuple[float, float]:
    """Return the seconds to a question's first token, and those that a document had still to go."""
    document = f"Document {number}. " + " ".join(f"word{n}" for n in range(_WORDS))
    endpoint = ensure_server(model._spec(engine=model.engine))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_first_token, model, document)
        while not _works(endpoint):
            assert not reading.done(), "the document was read too fast"
        began = time.perf_counter()
        question = _first_token(model, _QUESTION.format(number=number))
        reading.result()
        return question, time.perf_counter() - began


def _question_row(model: ChatVllmMlx, architecture: str) -> Row:
    alone, meanwhile, rest = [], [], []
    for number in range(QUESTIONS):
        alone.append(_first_token(model, _QUESTION.format(number=f"{number}, alone")))
        question, left = _ask_meanwhile(model, number)
        meanwhile.append(question)
        rest.append(left)
    share = median(a / b for a, b in zip(meanwhile, rest, strict=True))
    figures = {_ALONE: alone, _MEANWHILE: meanwhile, _REST: rest}
    return Row(
        section="company",
        what=f"a short question while a document is read, tiny {architecture}",
        unit="s to the first token",
        figures={name: median(times) for name, times in figures.items()},
        checks=(Check("of the rest of the document", share, _SHARE),),
    )


def _agents_row(model: ChatVllmMlx, architecture: str) -> Row:
    numbers = itertools.count(100)
    found: dict[str, list[tuple[float, float]]] = {_TOGETHER: [], _WHOLE: []}
    for number in range(ROUNDS):
        for name in sorted(found, reverse=number % 2 == 0):
            if name == _WHOLE:
                with _whole_turns():
                    found[name].append(_run(model, numbers))
            else:
                found[name].append(_run(model, numbers))
    pairs = list(zip(found[_TOGETHER], found[_WHOLE], strict=True))
    return Row(
        section="company",
        what=f"{AGENTS} agents at once, {TURNS} turns each, tiny {architecture}",
        unit="s to the first token",
        figures={name: median(first for first, _ in times) for name, times in found.items()},
        checks=(
            Check("of whole turns, first token", median(a[0] / b[0] for a, b in pairs), _SHARE),
            Check("of whole turns, all in all", median(a[1] / b[1] for a, b in pairs), 1.0),
        ),
    )


@contextmanager
def _served(folder: str) -> Iterator[ChatVllmMlx]:
    model = ChatVllmMlx(model=folder, temperature=0, max_tokens=TOKENS, server_env=fast_cpu())
    model.warm_up()
    yield model
    model.unload(force=True)


def rows() -> list[Row]:
    """Measure."""
    found = []
    with real():
        for architecture, template in (("qwen3_5", "qwen3.6"), ("gemma4", "plain")):
            with _served(tiny(architecture, template)) as model:
                found += [_agents_row(model, architecture), _question_row(model, architecture)]
        with _served(tiny_text("qwen3_next")) as model:
            found.append(_question_row(model, "qwen3_next"))
    return found
