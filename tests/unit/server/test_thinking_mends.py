"""The mends of budgets for thoughts: what counts towards one, and for which models."""

import types
from collections.abc import Sequence

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


class Tokenizer:
    """Knows some texts as one token, and writes all others letter by letter."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def encode(self, text: str, *, add_special_tokens: bool) -> list[str]:
        assert not add_special_tokens
        return [text] if text in self._words else list(text)


def module_for(tokenizer: Tokenizer | None) -> types.SimpleNamespace:
    """Return a server whose model has a tokenizer."""

    def build(engine, thinking_token_budget, *, inner=None):
        return None if tokenizer is None else ("processor", thinking_token_budget, inner)

    module = types.SimpleNamespace(
        _build_thinking_processor=build, _get_engine_tokenizer=lambda engine: tokenizer
    )
    thinking._force_tags_that_are_tokens.apply(module)
    return module


@pytest.mark.parametrize(
    ("words", "is_forced"),
    [(("<think>", "</think>"), True), (("<think>",), False), (("</think>",), False), ((), False)],
)
def test_a_model_without_the_tags_is_forced_to_write_none(
    words: tuple[str, ...], *, is_forced: bool
):
    """It would write one into its answer, letter by letter."""
    build = module_for(Tokenizer(words))._build_thinking_processor
    assert build("engine", 16, inner="a") == (("processor", 16, "a") if is_forced else None)
    assert module_for(None)._build_thinking_processor("engine", 16) is None


def test_other_budgets_are_left_alone():
    """A processor that is called otherwise stays as it is."""
    module = types.SimpleNamespace(ThinkingAwareLogitsProcessor=type("Other", (), {}))
    with pytest.raises(UnknownCodeError):
        thinking._count_answers_alone.apply(module)
