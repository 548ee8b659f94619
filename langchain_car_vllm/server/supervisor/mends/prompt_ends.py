"""Where a prompt's system message and its last message end: what a cache is kept up to.

A chat template is asked by what it makes of messages whose texts are known.
"""

from contextlib import suppress
from typing import Any

RECURRENT = ("ArraysCache", "MambaCache")
# Once they are full, they cannot be rewound either.
_WINDOWS = ("RotatingKVCache",)
_QUESTION = {"role": "user", "content": "x"}
_MODES: "tuple[dict[str, bool], ...]" = ({}, {"enable_thinking": True}, {"enable_thinking": False})


def holds(cache: Any, *kinds: str) -> bool:
    """Tell whether a layer's cache is of one of some kinds, by itself or with others in it."""
    names = {kind.__name__ for kind in type(cache).__mro__}
    inner = getattr(cache, "caches", ())
    return bool(names & set(kinds)) or any(holds(each, *kinds) for each in inner)


def may_not_rewind(model: Any) -> bool:
    """Tell whether a model has caches that cannot be rewound, or not once they are full."""
    from mlx_lm.models.cache import make_prompt_cache

    return any(holds(cache, *RECURRENT, *_WINDOWS) for cache in make_prompt_cache(model))


def beginnings_of_answers(tokenizer: Any, templated: Any = None) -> "list[list[int]]":
    """Return the tokens that a chat template may end a prompt with, behind its last message.

    Args:
        tokenizer: Encodes the text.
        templated: Applies the template, by default the tokenizer.
    """
    found: list[list[int]] = []
    for mode in _MODES:
        with suppress(Exception):  # whatever a template raises: then its prompts stay whole
            with_it, without = (
                _render(templated or tokenizer, [_QUESTION], mode, add_generation_prompt=is_asked)
                for is_asked in (True, False)
            )
            if with_it.startswith(without) and len(with_it) > len(without):
                end = tokenizer.encode(with_it[len(without) :], add_special_tokens=False)
                found.append(list(end))
    return found


def opening_of_questions(tokenizer: Any, templated: Any = None) -> "list[int]":
    """Return the tokens between the system message and the first question, none where unknown.

    They are known where they begin with a token of markup, such as `<|im_end|>`: what stands before
    them is then cut into the same tokens, whatever follows.

    Args:
        tokenizer: Encodes the text.
        templated: Applies the template, by default the tokenizer.
    """
    rules, question = "rules7", "question7"
    messages = [{"role": "system", "content": rules}, {"role": "user", "content": question}]
    with suppress(Exception):  # whatever a template raises: then nothing is known
        text = _render(templated or tokenizer, messages, {}, add_generation_prompt=False)
        between = text[text.index(rules) + len(rules) : text.index(question)]
        opening = list(tokenizer.encode(between, add_special_tokens=False))
        markup = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
        if opening and opening[0] in markup:
            return opening
    return []


def system_end_of(prompt: "list[int]", opening: "list[int]") -> int:
    """Return how many tokens a prompt has up to the end of its system message, 0 for none.

    Args:
        prompt: All of its tokens.
        opening: What stands between that message and the first question.
    """
    place = -1
    with suppress(ValueError):
        while opening:
            place = prompt.index(opening[0], place + 1)
            if prompt[place : place + len(opening)] == opening:
                return place + 1
    return 0


def keeps_beginnings(templated: Any) -> bool:
    """Tell whether a template shows each answer later as it had begun, thoughts included."""
    for mode in _MODES:
        thought = {} if mode.get("enable_thinking") is False else {"reasoning_content": "z"}
        turns = [_QUESTION, {"role": "assistant", "content": "y", **thought}, _QUESTION]
        with suppress(Exception):
            first, later = (
                _render(templated, messages, {**mode, "preserve_thinking": True})
                for messages in (turns[:1], turns)
            )
            if not later.startswith(first):
                return False
    return True


def tail_of(prompt: "list[int]", beginnings: "list[list[int]]") -> int:
    """Return how many tokens stand behind the last message of a prompt, 0 where that is unknown."""
    fitting = [end for end in beginnings if prompt[-len(end) :] == end]
    longest = max(map(len, fitting), default=0)
    return longest if longest < len(prompt) else 0


def _render(
    templated: Any,
    messages: "list[dict[str, str]]",
    mode: "dict[str, bool]",
    *,
    add_generation_prompt: bool = True,
) -> str:
    text: str = templated.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, **mode
    )
    return text
