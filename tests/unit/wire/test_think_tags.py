"""Thoughts in tags become reasoning, however they are cut; other text stays what it is."""

import pytest
from fakes.calls import add, called, ways
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.think_tags import ThinkTagFilter


def run(text: str, cut: int) -> tuple[str, str]:
    """Return text and thought of an answer that comes in parts."""
    tags = ThinkTagFilter()
    found = [tags.feed(Delta(text[i : i + cut])) for i in range(0, len(text), cut)]
    deltas = [delta for delta in [*found, *tags.end("stop")] if delta]
    return "".join(d.text for d in deltas), "".join(d.thought for d in deltas)


@pytest.mark.parametrize("cut", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "said", "thought"),
    [
        ("<think>hm</think>yes", "yes", "hm"),
        ("<think>a < b</think>\nyes", "yes", "a < b"),
        ("<think>a</think>\n\nyes\n", "yes\n", "a"),
        ("<think>\na\n\nb\n</think>\n\n", "", "a\n\nb"),
        ("\n<think>hm</thin", "", "hm</thin"),
        ("<thin", "<thin", ""),
        ("yes <think>no</think>", "yes <think>no</think>", ""),
        ("<b>yes</b>", "<b>yes</b>", ""),
        ("[THINK]a[/THINK]yes", "yes", "a"),
        ("<thinking>a</think></thinking>yes", "yes", "a</think>"),
        ("[1] is [THINK]", "[1] is [THINK]", ""),
        ("<think>a</think><think>b</think>yes", "yes", "a\nb"),
        ("<think>a</think>\n<thought>\nb\n</thought>\n\nyes", "yes", "a\nb"),
        ("<think></think><think>b</think>", "", "b"),
        ("<think>a</think>yes</think>", "yes</think>", "a"),
        ("</think>\n\nyes", "yes", ""),
        ("`</think>` ends it", "`</think>` ends it", ""),
        ("yes <thin", "yes <thin", ""),
        ("  ", "  ", ""),
    ],
)
def test_a_thought_at_the_beginning_is_reasoning(text, said, thought, cut):
    """Anything else stays in the text."""
    assert run(text, cut) == (said, thought)


@pytest.mark.parametrize(
    ("text", "said", "thought"),
    [
        ("a\n</think>\n\nyes", "yes", "a"),
        ("\na `</think>` b\n</think>\nyes", "yes", "a `</think>` b"),
        ("a\nb\n\n</think>", "", "a\nb"),
    ],
)
def test_a_thought_that_began_in_the_prompt_is_reasoning_in_a_whole_answer(text, said, thought):
    """A stream is not held back for it, and stays as it is."""
    assert run(text, 1000) == (said, thought)
    for cut in (1, 3):
        assert run(text, cut) == (text, "")


@pytest.mark.parametrize("cut", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "Qwen ends its thought with </think> and then answers.",
        "Its template:\n<think>\n...\n</think>\nand then the answer.",
        "The end:\n```\n</think>\n```\nsays so.",
        '{"code": "\n</think>\n"}',
        ' ["a",\n</think>\n]',
        "a</think>yes",
        "yes",
    ],
)
def test_an_answer_that_speaks_of_thoughts_stays_whole(text, cut):
    """Prose, code and JSON."""
    assert run(text, cut) == (text, "")


def test_a_stream_without_a_thought_flows_on_at_once():
    """Only what may be a tag at the beginning waits."""
    tags = ThinkTagFilter()
    parts = ["Hello", " there", ", 1 <", " 2"]
    assert [tags.feed(Delta(part)) for part in parts] == [*map(Delta, parts)]


@given(st.lists(st.sampled_from([*"<>/thinka \n", "<think>", "</think>"])), st.integers(1, 5))
def test_nothing_but_tags_and_line_breaks_is_lost(pieces, cut):
    """Text and thought together are what came."""
    text = "".join(pieces)
    said, thought = run(text, cut)
    whole = text.replace("<think>", "").replace("</think>", "")
    left = (thought + said).replace("<think>", "").replace("</think>", "")
    assert "".join(left.split()) == "".join(whole.split())


def test_a_server_without_a_reasoning_parser_is_read_all_the_same(serve):
    """Its thought is streamed as reasoning, and a call behind it is a call."""
    model, _ = serve(Reply(text="<think>I add.</think>Four."))
    for message in ways(model, "go").values():
        assert message.text == "Four."
        assert message.additional_kwargs["reasoning_content"] == "I add."
    call = '<think>I add.</think>\n{"name": "add", "arguments": {"a": 1, "b": 2}}'
    model, _ = serve(Reply(text=call))
    for message in ways(model.bind_tools([add]), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2})]


@pytest.mark.parametrize(
    ("before", "said", "thought"),
    [
        ("\n\n", "\n\n", ""),
        ("<th", "<th", ""),
        ("<think>I add.</", "", "I add.</"),
        ("<think>I add.</think>", "", "I add."),
        ("<think>I add.</think>Now.", "Now.", "I add."),
    ],
)
def test_what_comes_before_a_call_comes_once_and_as_what_it_is(serve, before, said, thought):
    """Streamed or whole, where a message holds both; what was held back came a second time."""
    model, _ = serve(Reply(text=before, pieces=[before], calls=[("add", {"a": 1, "b": 2})]))
    for message in ways(model.bind_tools([add]), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2})]
        assert message.text == said
        assert message.additional_kwargs.get("reasoning_content", "") == thought
