"""Decisions with the probabilities of a real model."""

from collections.abc import Callable

import pytest

from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
CRITERIA = {
    "billing": "Payment, invoice or refund.",
    "billing disputes": "A charge that the customer did not make.",
    "technical": "Something does not work.",
}
STATES = ("My invoice is wrong.", "The app crashes.", "I never made this charge.")


def test_probabilities_are_those_of_the_first_token_and_places_matter(
    chat: Callable[..., ChatVllmMlx], fast_cpu: dict[str, str]
):
    """They add up, and both orders take the bias for places out; one server answers all."""
    from langchain_car_vllm import VllmMlxDecisions

    llm = chat()
    llm.warm_up()
    question = decisions.Choice(instructions="Which team should handle this?", criteria=CRITERIA)
    turned = question.model_copy(update={"criteria": dict(reversed(CRITERIA.items()))})
    differences = {}
    for both in (False, True):
        decide = VllmMlxDecisions(model=llm.model, server_env=fast_cpu, both_orders=both)
        found = []
        for state in STATES:
            questions = {"there": question, "back": turned}
            answers = decide.invoke({"state": state, "questions": questions}).choices
            there, back = answers["there"].probabilities, answers["back"].probabilities
            assert sum(there.values()) == pytest.approx(1)
            found.append(max(abs(there[name] - back[name]) for name in CRITERIA))
        differences[both] = max(found)
    print("largest difference that the order makes:", differences)
    assert differences[True] < 0.02
    assert differences[False] > differences[True]
    noul = decisions.Noul(instructions="Is it a question about money?")
    assert 0 < decide.invoke({"state": STATES[0], "questions": {"q": noul}}).nouls["q"].noul < 1
