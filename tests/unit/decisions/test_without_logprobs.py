"""Decisions of a server that tells no log probabilities: labels are compared by bias."""

import asyncio
import dataclasses
import math
from functools import partial

import pytest
from fakes.reply import Reply
from fakes.vocabulary import Vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core import exceptions as core
from unit.decisions.asking import TEAM, ask, choosing

from langchain_car_vllm.errors import CarVllmError

decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
bisection = pytest.importorskip("langchain_car_vllm.decisions.label_bisection")
Choice, Noul, Score = decisions.Choice, decisions.Noul, decisions.Score
Alphabet, compare_labels = bisection.Alphabet, bisection.compare_labels


def choosing_plainly(body) -> Reply:
    """Do the same with tokens that have no space before them."""
    reply = choosing(body)
    likely = {key.strip(): value for key, value in reply.likely.items()}
    return dataclasses.replace(reply, text=max(likely, key=likely.get), likely=likely)


def plain_server(server, **vocabulary):
    """Make it one that tells no log probabilities, as a `vllm-mlx` that was started by hand."""
    server.dialect.script = choosing_plainly
    server.dialect.tells_logprobs = False
    server.dialect.vocabulary = Vocabulary(**vocabulary)


async def ask_in_loop(decide, state, **questions):
    return await decide.ainvoke({"state": state, "questions": questions})


QUESTIONS = {
    "team": Choice(instructions="Who helps?", criteria=TEAM),
    "anger": Score(instructions="How angry?", criteria=["calm", "annoyed", "furious"]),
    "urgent": Noul(instructions="Is it urgent?"),
}


@pytest.mark.parametrize(("offset", "loop"), [(-33, False), (-16, True), (1000, False)])
def test_a_server_without_log_probabilities_tells_the_same(decide, server, offset, loop):
    """Wherever its vocabulary has the characters; the number of requests is bounded."""
    told = ask(decide, "x", **QUESTIONS)
    server.dialect.requests.clear()
    plain_server(server, offset=offset)
    asked_again = partial(ask_in_loop, decide) if loop else partial(ask, decide)
    found = asked_again("x", **QUESTIONS)
    found = asyncio.run(found) if loop else found
    for name, share in told.choices["team"].probabilities.items():
        assert found.choices["team"].probabilities[name] == pytest.approx(share, rel=0.05)
    assert found.scores["anger"].score == pytest.approx(told.scores["anger"].score, rel=0.05)
    assert found.nouls["urgent"].noul == pytest.approx(told.nouls["urgent"].noul, rel=0.05)
    ways = [3, 3, 3, 2]  # the choice in both orders
    bodies = server.dialect.requests
    assert len(bodies) <= 4 + 3 + sum(8 * labels + 4 for labels in ways)
    assert {body["max_tokens"] for body in bodies} == {1}
    assert {body["temperature"] for body in bodies} == {0}
    assert found.usage["total_tokens"] == 31 * (len(bodies) - 3)


@settings(max_examples=15)
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=5), st.sampled_from([0.0, 0.125]))
def test_any_shares_are_found(weights, grain):
    """Also in 16 bits, where a logit is known to an eighth."""
    total = sum(weights)
    likely = dict(zip("ABCDE", (math.log(w / total) for w in weights), strict=False))
    vocabulary = Vocabulary(grain=grain)
    steps = compare_labels("ABCDE"[: len(weights)], Alphabet(-16))
    bias, count, shares = next(steps), 0, []
    while not shares:
        count += 1
        try:
            bias = steps.send(vocabulary.likeliest(likely, bias))
        except StopIteration as end:
            shares = end.value.shares
    for share, weight in zip(shares, weights, strict=True):
        assert share / sum(shares) == pytest.approx(weight / total, rel=0.05 + 2 * grain, abs=0.002)
    assert count <= 8 * len(weights) + 4


def test_labels_that_the_model_would_not_write_are_favoured_and_told(decide, server):
    """Their shares are right among each other, and a warning says that the model strays."""
    from langchain_car_vllm import UnlabelledAnswerWarning

    plain_server(server)
    likely = {"Well": -0.01, "A": -9.0, "B": -10.0}
    server.dialect.script = lambda body: Reply(text="Well", likely=likely)
    with pytest.warns(UnlabelledAnswerWarning, match="something other"):
        found = ask(decide, "x", q=Noul(instructions="?"))
    assert found.nouls["q"].noul == pytest.approx(1 / (1 + math.exp(-1)), rel=0.05)


def test_labels_that_are_written_with_other_tokens_are_a_typed_error(decide, server):
    """Such as ones that begin with a space: what is known is about those without."""
    plain_server(server)
    server.dialect.script = choosing
    with pytest.raises(core.ModelInvalidRequestError, match="no way to find out"):
        ask(decide, "x", q=Noul(instructions="?"))


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        (None, "ignores `logit_bias`"),
        (Vocabulary(offset=3), "no way to find out"),
        (Vocabulary(offset=-30, is_written=False), "no way to find out"),
        (Vocabulary(offset=200_000), "no way to find out"),
    ],
)
def test_a_server_that_cannot_be_compared_is_a_typed_error(decide, server, vocabulary, said):
    """One that ignores the bias, or has the characters elsewhere, and what to do about it."""
    plain_server(server)
    server.dialect.vocabulary = vocabulary
    with pytest.raises(core.ModelInvalidRequestError, match=said) as caught:
        ask(decide, "x", q=Noul(instructions="?"))
    assert "base_url" in caught.value.hint
    assert len(server.dialect.requests) <= 8


def test_what_is_refused_for_another_reason_is_no_comparison(decide, server):
    """One request, and its own error; a server that refuses log probabilities is compared."""
    server.dialect.script = lambda body: Reply(status=400, detail="no")
    with pytest.raises(core.ModelInvalidRequestError, match="no"):
        ask(decide, "x", q=Noul(instructions="?"))
    assert len(server.dialect.requests) == 1

    def refusing(body):
        if body.get("logprobs"):
            return Reply(status=400, detail="logprobs are not supported")
        return choosing_plainly(body)

    server.dialect.script = refusing
    found = ask(decide, "x", q=Noul(instructions="?"))
    assert found.nouls["q"].noul == pytest.approx(0.67, abs=0.03)


def test_another_model_under_the_same_name_is_met_anew(decide, server):
    """What was learnt of the former one's vocabulary is given up with the first failure."""
    plain_server(server, offset=-16)
    question = Noul(instructions="?")
    ask(decide, "x", q=question)
    plain_server(server, offset=-33)
    with pytest.raises(CarVllmError):
        ask(decide, "x", q=question)
    assert ask(decide, "x", q=question).nouls["q"].noul == pytest.approx(0.67, abs=0.03)
