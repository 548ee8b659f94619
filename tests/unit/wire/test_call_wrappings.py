"""Of what models put around calls nothing stays, and of what follows them nothing is lost."""

import json

import pytest
from fakes.calls import add, called, ways
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.test_text_calls import in_pieces, run

TEXTS = ["one", "{\n{two}}", "`", '"}}']
WRAPPINGS = {
    "a line of code": "```json {} ```",
    "no language": "```{}```",
    "four marks": "````json\n{}\n````",
    "one mark": "`{}`",
    "two marks": "``{}``",
    "an end alone": "{}\n```",
    "a beginning alone": "```json\n{}",
    "lines of another system": "```json\r\n{}\r\n```\r\n",
    "a list": "[{}]",
    "a list without an end": "[{}",
    "a bracket too many": "{}]}",
    "a comma": "{},",
}
BEHIND = ["", "Done.", "See {x} and {{y}}.", "```\ncode\n```\nThat is it.", "Use `x` or [y]."]


def written(text: str | None, *, doubled: bool) -> str:
    """Return a call of a tool with a text, or of one without any, in single or double braces."""
    if text is None:
        call = '{"name": "now", "arguments": {}}'
        return call.replace("{", "{{").replace("}", "}}") if doubled else call
    call = '{"name": "add", "arguments": {"text": @}}'
    call = call.replace("{", "{{").replace("}", "}}") if doubled else call
    return call.replace("@", json.dumps(text))


def made(text: str | None) -> tuple[str, dict[str, str]]:
    """Return what is to come of it."""
    return ("now", {}) if text is None else ("add", {"text": text})


@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_nothing_stays_of_a_wrapping(wrapping, doubled, cut):
    """Whatever it is, and however it comes."""
    for behind in BEHIND:
        text = f"{wrapping.replace('{}', written('`', doubled=doubled), 1)}\n{behind}"
        pieces = in_pieces(text, cut)
        assert run(pieces) == (behind, [made("`")]), text


@given(
    st.lists(st.tuples(st.none() | st.sampled_from(TEXTS), st.booleans()), min_size=1, max_size=4),
    st.sampled_from(["\n", "", ", ", "\n```\n```json\n", "</tool_call>\n<tool_call>"]),
    st.sampled_from(["{}", "[{}]", "<tool_call>{}</tool_call>", "```json\n{}\n```"]),
    st.sampled_from(BEHIND),
    st.sampled_from([1, 7, 1000]),
)
def test_calls_of_any_braces_follow_each_other(calls, joint, wrapping, behind, cut):
    """All of them are called, and the text behind the last one stays."""
    joint = ", " if wrapping == "[{}]" else joint
    inner = joint.join(written(text, doubled=doubled) for text, doubled in calls)
    text = f"{wrapping.replace('{}', inner, 1)}\n{behind}"
    pieces = in_pieces(text, cut)
    assert run(pieces) == (behind, [made(text) for text, _ in calls])


@pytest.mark.parametrize("wrapping", ["{}", "<tool_call>\n{}\n</tool_call>", "```json\n{}\n```"])
def test_line_breaks_in_a_text_are_its_own(serve, wrapping):
    """Models write them as they are; code that is to be saved may hold marks, too."""
    page = "# A\n\n```python\nx = 1\n```\nEnd"
    call = '{"name": "add", "arguments": {"a": 1, "b": 2, "text": "' + page + '"}}'
    model, _ = serve(Reply(text=wrapping.replace("{}", call)))
    for message in ways(model.bind_tools([add]), "go").values():
        assert called(message) == [("add", {"a": 1, "b": 2, "text": page})]
        assert message.text == ""


@pytest.mark.parametrize(
    "text", ["Use `x` or ``y``.", "~~no~~ yes", "`{a}` and `[b]`", "~~~\n{a}\n~~~\n", "a ~", "`"]
)
@pytest.mark.parametrize("cut", [1, 2, 1000])
def test_marks_around_other_text_stay(text, cut):
    """Not a letter is lost."""
    assert run(in_pieces(text, cut)) == (text, [])


@pytest.mark.parametrize(
    "before",
    [
        "好的~~~\nNow.",
        "Okay ~~~~ \nNow.",
        "~~~ so\n",
        "So\n\nyes~~~",
        "~~~\nx\n~~~\nSo",
        "A\n~~~sh\nx\n~~~",
    ],
)
@pytest.mark.parametrize(
    "wrapping", ["\n{}", "\n<tool_call>\n{}\n</tool_call>", "```json\n{}\n```"]
)
@pytest.mark.parametrize("cut", [1, 2, 3, 1000])
def test_tildes_begin_no_code(before, wrapping, cut):
    """Models lengthen a sound with them, and may call a tool behind it, or behind code."""
    text = before + wrapping.replace("{}", written("`", doubled=False))
    pieces = in_pieces(text, cut)
    assert run(pieces) == (before.rstrip(), [made("`")])


@pytest.mark.parametrize(
    "code",
    [
        "````markdown\n```bash\nrun x\n```\n````",
        "````markdown\n```bash\nrun x\n```\n\n```bash\nrun y\n```\n````",
        "`````\n````\n```json\n{}\n```\n````\n`````",
        "So:\n````md\n```xml\n<tool_call>\nso\n```\n````",
        '````md\n```json\n{"name": "x"}\n```\n````',
        "```\n```",
    ],
)
@pytest.mark.parametrize(
    "wrapping", ["\n{}", "\n<tool_call>\n{}\n</tool_call>", "\n```json\n{}\n```"]
)
@pytest.mark.parametrize("cut", [1, 2, 3, 1000])
def test_code_in_code_stays_and_a_call_behind_it_is_one(code, wrapping, cut):
    """The outer code has the inner one, and ends where it ends itself."""
    text = f"{code}\nNow." + wrapping.replace("{}", written("`", doubled=False))
    pieces = in_pieces(text, cut)
    assert run(pieces) == (f"{code}\nNow.", [made("`")])


@pytest.mark.parametrize(
    "behind",
    [
        "```python\ndef f():",
        "So:\n```python\ndef f():",
        "```python\nx\n```\nThen\n```js\ny",
        "~~~python\nx",
        "`x` and `y",
    ],
)
@pytest.mark.parametrize("wrapping", ["{}", "<tool_call>\n{}\n</tool_call>", "```json\n{}\n```"])
@pytest.mark.parametrize("cut", [1, 2, 3, 1000])
def test_code_behind_a_call_keeps_its_marks(behind, wrapping, cut):
    """Also where the tokens ran out before its end."""
    text = f"{wrapping.replace('{}', written('`', doubled=False))}\n\n{behind}"
    pieces = in_pieces(text, cut)
    assert run(pieces) == (behind, [made("`")])
