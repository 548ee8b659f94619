"""Where answers begin, and whether a template shows them later as they had begun."""

from typing import Any

import pytest

from langchain_car_vllm.server.supervisor.mends.prompt_ends import (
    RECURRENT,
    beginnings_of_answers,
    holds,
    keeps_beginnings,
    opening_of_questions,
    system_end_of,
    tail_of,
)


class Template:
    """Renders as chat templates do; a token is a character.

    Args:
        opens: What a prompt ends with, by whether thoughts are wanted; None where it is not asked.
        shows: What an earlier answer begins with, by whether it has a thought.
    """

    def __init__(self, opens: dict[bool | None, str], shows: dict[bool, str]) -> None:
        self._opens, self._shows = opens, shows

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        enable_thinking: bool | None = None,
        **_: Any,
    ) -> str:
        assert not tokenize
        text = ""
        for message in messages:
            if message["role"] == "assistant":
                text += "<a>" + self._shows["reasoning_content" in message]
            text += message["content"] + ";"
        return text + ("<a>" + self._opens[enable_thinking] if add_generation_prompt else "")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]

    all_special_ids = ()

    def get_added_vocab(self) -> dict[str, int]:
        return {";": ord(";"), "<": ord("<")}


PLAIN = Template(dict.fromkeys((None, True, False), ""), {True: "", False: ""})
KEEPS = Template({None: "<t>", True: "<t>", False: "<t></t>"}, {True: "<t>z</t>", False: "<t></t>"})
DROPS = Template({None: "<t>", True: "<t>", False: "<t></t>"}, {True: "", False: ""})
DROPS_EMPTY_ONES = Template(
    {None: "<t>", True: "<t>", False: "<t></t>"}, {True: "<t>z</t>", False: ""}
)


@pytest.mark.parametrize(
    ("template", "keeps"),
    [(PLAIN, True), (KEEPS, True), (DROPS, False), (DROPS_EMPTY_ONES, False)],
)
def test_a_template_keeps_beginnings_or_not(template: Template, *, keeps: bool):
    """One mode in which it leaves a beginning out is enough."""
    assert keeps_beginnings(template) is keeps


def test_a_template_that_refuses_changes_nothing():
    """Whatever it raises, it counts as one that keeps beginnings, of which none is known."""
    silent = Template({}, {})
    assert keeps_beginnings(silent)
    assert beginnings_of_answers(silent) == []


def test_the_system_message_ends_before_the_first_question():
    """The first token of what stands between is kept too, as it ends the message."""
    opening = opening_of_questions(PLAIN)
    assert opening == [ord(";")]

    def end(text: str, opening: list[int] = opening) -> int:
        return system_end_of([ord(letter) for letter in text], opening)

    assert end("rules;x;<a>") == len("rules;")
    assert end("rules") == 0
    assert end("rules;x;", []) == 0
    assert end("a;b;<", [ord(";"), ord("<")]) == len("a;b;")


def test_what_may_run_into_the_question_is_no_end():
    """Where nothing of markup stands between, tokens may depend on what follows."""

    class Bare(Template):
        def get_added_vocab(self) -> dict[str, int]:
            return {}

    assert opening_of_questions(Bare({}, {})) == []


def test_the_tail_is_the_longest_that_fits():
    """Of a prompt that ends with a closed thought, the whole of it; nothing where none fits."""
    beginnings = beginnings_of_answers(DROPS)
    assert {"".join(map(chr, found)) for found in beginnings} == {"<a><t>", "<a><t></t>"}

    def tail(text: str) -> int:
        return tail_of([ord(letter) for letter in text], beginnings)

    assert tail("x;<a><t></t>") == len("<a><t></t>")
    assert tail("x;<a><t>") == len("<a><t>")
    assert tail("x;<a>") == 0
    assert tail("<a><t>") == 0  # nothing would be left


def test_what_a_cache_holds():
    """By the names of its classes, also where one cache holds others."""

    class ArraysCache:
        pass

    class Derived(ArraysCache):
        pass

    class CacheList:
        caches = (object(), Derived())

    assert holds(CacheList(), *RECURRENT)
    assert not holds(object(), *RECURRENT)
