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


def module_for(tokenizer: Tokenizer | None, parser: str | None = None) -> types.SimpleNamespace:
    """Return a server whose model has a tokenizer, and a parser of thoughts or none."""

    def build(engine, thinking_token_budget, *, inner=None):
        if tokenizer is None:
            return None
        return types.SimpleNamespace(
            budget=thinking_token_budget, inner=inner, _content_phase_mask_ids=(1, 2)
        )

    def build_parser(engine=None):
        return module._reasoning_parser

    module = types.SimpleNamespace(
        _build_thinking_processor=build,
        _build_reasoning_parser=build_parser,
        _get_engine_tokenizer=lambda engine: tokenizer,
        _reasoning_parser=parser,
    )
    thinking._force_tags_that_are_tokens.apply(module)
    return module


@pytest.mark.parametrize("words", [("<think>", "</think>"), ("<think>",), ("</think>",), ()])
@pytest.mark.parametrize("parser", [None, "glm4"])
def test_a_model_that_does_not_think_is_forced_to_write_no_tag(
    words: tuple[str, ...], parser: str | None
):
    """It would write one into its answer; one that thinks may begin words as tags begin."""
    are_tokens = len(words) == 2
    build = module_for(Tokenizer(words), parser)._build_thinking_processor
    built = build("engine", 16, inner="a")
    if parser is None and not are_tokens:
        assert built is None
    else:
        assert (built.budget, built.inner) == (16, "a")
        assert built._content_phase_mask_ids == ((1, 2) if are_tokens else ())
    assert module_for(None)._build_thinking_processor("engine", 16) is None


def test_other_budgets_are_left_alone():
    """A processor that is called otherwise stays as it is."""
    module = types.SimpleNamespace(ThinkingAwareLogitsProcessor=type("Other", (), {}))
    with pytest.raises(UnknownCodeError):
        thinking._count_answers_alone.apply(module)
