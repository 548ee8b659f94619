"""The mends of budgets for thoughts: what counts towards one."""

import types

import pytest

from langchain_car_vllm.server.supervisor.mends import thinking
from langchain_car_vllm.server.supervisor.mends.mend import UnknownCodeError

PROMPT = ["what", "</think>", "so"]


class Processor:
    """Counts what it sees, as the server's does, and allows no further attribute."""

    __slots__ = ("seen",)

    def __init__(self, thinking_token_budget: int) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, tokens: list[str], logits: str) -> str:
        self.seen.append(tokens)
        return logits


def mended() -> type[Processor]:
    module = types.SimpleNamespace(ThinkingAwareLogitsProcessor=Processor)
    thinking._count_answers_alone.apply(module)
    return module.ThinkingAwareLogitsProcessor


@pytest.mark.parametrize("prompt", [[], PROMPT[2:], PROMPT])
def test_the_prompt_is_no_thought(prompt: list[str]):
    """However much of it an engine shows: all, what was not found in the cache, or nothing."""
    processor = mended()(5)
    for answer in ([], ["I"], ["I", "see"], ["I"], ["I", "saw"]):
        assert processor([*prompt, *answer], "logits") == "logits"
    assert processor.seen == [[], ["I"], ["I", "see"], ["I"], ["I", "saw"]]


def test_each_request_has_a_beginning_of_its_own():
    """One with a long prompt changes nothing for the next."""
    kind = mended()
    first, second = kind(5), kind(5)
    first(PROMPT, "")
    second(["hi"], "")
    second(["hi", "I"], "")
    assert second.seen == [[], ["I"]]


def test_other_budgets_are_left_alone():
    """A processor that is called otherwise stays as it is."""
    module = types.SimpleNamespace(ThinkingAwareLogitsProcessor=type("Other", (), {}))
    with pytest.raises(UnknownCodeError):
        thinking._count_answers_alone.apply(module)
