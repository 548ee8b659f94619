"""Calls written as text become calls, however they are cut; other text stays what it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.text_calls import TextCallFilter
from langchain_car_vllm.wire.answer.written_calls import TAG_ENDS, TAGS, CallNames

CALL = {"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}
TEXT = json.dumps(CALL)
CALLS = [
    TEXT,
    f"\n{TEXT}\n",
    f"```json\n{TEXT}\n```",
    f"```\n{json.dumps(CALL, indent=2)}\n```\n",
    f"<tool_call>\n{TEXT}\n</tool_call>",
    f"<tool_call>{TEXT}",
    f"```json\n{TEXT}",
    json.dumps({"type": "function", "function": CALL}),
    json.dumps({"name": "add", "parameters": CALL["arguments"]}),
    json.dumps({"name": "add", "arguments": json.dumps(CALL["arguments"])}),
    json.dumps([CALL]),
    json.dumps({"name": "add", "input": CALL["arguments"]}),
    json.dumps({"tool": "functions.add", "tool_input": CALL["arguments"]}),
    f"<|python_tag|>{TEXT}<|eom_id|>",
    f"[TOOL_CALLS] [{TEXT}]</s>",
    f"<|tool_call|>[{TEXT}]",
    f"{TEXT}<|im_end|>",
]
TEXTS = [
    "Hello there",
    "A set is written {1, 2}.",
    "{not json}",
    "[link](https://example.org) and [more]",
    '{"city": "Paris", "name": "add"}',
    '{"name": "unknown", "arguments": {}}',
    '{"name": "add"}',
    "```python\nprint({'name': 'add'})\n```\nThat was code.",
    '```json\n{"city": "Paris"}\n```\n',
    "``` is a fence",
    "a `b` and ``c``",
    "if x <tool> 3 < 4",
    "<tool_call>nonsense</tool_call>",
    "<tools>are listed</tools> so",
    "<tool_calls><tool_call>",
    "an <tool",
    "[TOOL_CALLS] none",
    "a <|python_tag|> and [TOOL",
    "```xml\n<tools>\n</tools>\n```\n",
    "```xml\n<tool_call>x</tool_call>\n```\nThat was XML.",
    "[1, 2, 3]",
    "{",
    "```",
    "  \n\n  ",
    '```json\n{"name": "other", "arguments": {}}\n```',
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
DEFINITION = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
DEFINITIONS = [
    json.dumps({"type": "function", "function": DEFINITION}),
    json.dumps([DEFINITION]),
    json.dumps({"name": "add", "parameters": {"properties": {}, "required": []}}),
    json.dumps({"name": "now", "description": "The time.", "parameters": {}}),
    f"<tools>\n{json.dumps({'type': 'function', 'function': DEFINITION})}\n</tools>",
    f"I have these:\n\n```json\n{json.dumps([DEFINITION], indent=2)}\n```\nAsk!",
]
DOCUMENTS = [
    json.dumps({"plan": [CALL], "done": False}),
    json.dumps({"plan": [{"step": 1, "what": [CALL, "and"]}, CALL]}),
    json.dumps({"plan": [{"step": 1, "action": CALL}, {"step": 2, "tool": CALL}]}),
    json.dumps([[1], {"said": "\\", "next": CALL}]),
    json.dumps({"said": '"}', "next": {"of": CALL}}, indent=2),
    json.dumps({"tools": [{"type": "function", "function": DEFINITION}]}),
    '{"plan": {"broken": true, }, "next": ' + TEXT + "}",
    '{"said": "<tool_call>' + TEXT.replace('"', '\\"') + '</tool_call>"}',
]


NAMES = CallNames({"add": "add", "now": "now", "a_b_1": "a.b"}, {"now"})
ARGUMENTS = json.dumps(CALL["arguments"])
DOUBLED = f'{{{{"name": "add", "arguments": {ARGUMENTS}}}}}'
LENIENT = {
    "doubled": DOUBLED,
    "doubled and one more": DOUBLED + "}",
    "doubled and two more": DOUBLED + "}}",
    "doubled and one less": DOUBLED[:-1],
    "all doubled": DOUBLED.replace(ARGUMENTS, '{{"a": 1, "b": [2, {{"c": "}"}}]}}'),
    "one more": TEXT + "}",
    "one less": TEXT[:-1],
    "two less": '{"function": {"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}',
    "spread out": '{\n  {"name": "add",\n "arguments": ' + ARGUMENTS + "}\n}",
    "wrapped": json.dumps({"tool_calls": [CALL]}),
    "wrapped once": json.dumps({"tool_call": CALL}),
}
WRAPPINGS = {
    "bare": "{}",
    "tag": "<tool_call>\n{}\n</tool_call>",
    "tag on a line": "<tool_call>{}</tool_call>",
    "fence": "```json\n{}\n```",
    "open tag": "<tool_call>\n{}",
}


UNTIDY = {
    "an end alone": "{}\n</tool_call>",
    "two ends": "<tool_call>\n{}\n</tool_call>\n</tool_call>",
    "two beginnings": "<tool_call>\n{}\n<tool_call>",
    "a beginning for each, one end": "<tool_call>\n{}\n<tool_call>\n{}\n</tool_call>",
    "a tag in a code block": "```json\n<tool_call>\n{}\n</tool_call>\n```",
    "a tag in a block of XML": "```xml\n<tool_call>{}</tool_call>\n```",
    "a code block in a tag": "<tool_call>\n```json\n{}\n```\n</tool_call>",
    "the tag of the tools": "<tools>\n{}\n</tools>",
    "tags in a tag": "<tool_calls><tool_call>{}</tool_call>\n<tool_call>{}</tool_call></tools>",
    "another tag": "<function_call>{}</function_call>",
    "a wrong end": "<tools>\n{}\n</tool_call>",
}


def in_pieces(text, size):
    """Return a text as it may come in a stream."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def run(pieces, names=NAMES):
    """Return the text and the calls that come out."""
    holdback = TextCallFilter(names)
    passed = [holdback.feed(Delta(piece)) for piece in pieces] + [*holdback.end("stop")]
    deltas = [delta for delta in passed if delta]
    calls = [(c["name"], json.loads(c["args"])) for delta in deltas for c in delta.calls]
    return "".join(delta.text for delta in deltas), calls


@pytest.mark.parametrize("text", CALLS)
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_a_call_in_any_form_becomes_the_call(text, cut):
    """Whether it comes whole or letter by letter."""
    pieces = in_pieces(text, cut)
    assert run(pieces) == ("", [("add", CALL["arguments"])])


@pytest.mark.parametrize("form", UNTIDY.values(), ids=UNTIDY)
def test_nothing_stays_of_untidy_tags(form):
    """One too many, too few, or one in the other: the calls, and no text."""
    for written in (TEXT, DOUBLED, TEXT[:-1], json.dumps(CALL, indent=1)):
        text = form.replace("{}", written)
        calls = [("add", CALL["arguments"])] * form.count("{}")
        for cut in (1, 3, 1000):
            assert run(in_pieces(text, cut)) == ("", calls)


def test_a_tag_in_an_argument_is_no_end():
    """Who writes a page about tags gets all of it."""
    call = {"name": "add", "arguments": {"a": "</tool_call> <tool_call> </tools>"}}
    for form in ("{}", "<tool_call>{}</tool_call>", "```json\n{}\n```"):
        text = form.replace("{}", json.dumps(call))
        assert run(list(text)) == ("", [("add", call["arguments"])])


@pytest.mark.parametrize("text", [*TEXTS, *DEFINITIONS, *DOCUMENTS])
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_other_text_stays_as_it_is(text, cut):
    """Not a letter is lost or added."""
    pieces = in_pieces(text, cut)
    assert run(pieces) == (text, [])


@pytest.mark.parametrize("before", ['{"a": 1}', '{"a": [', '{"a"} is a set.', '{"a": {}'])
@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_call_behind_json_is_a_call(before, cut):
    """Also where the JSON before it ends as none does: only what is in it is text."""
    text = f"{before}\n<tool_call>\n{TEXT}\n</tool_call>"
    pieces = in_pieces(text, cut)
    told, calls = run(pieces)
    assert (told.rstrip(), calls) == (before, [("add", CALL["arguments"])])


@pytest.mark.parametrize("before", ['{"a": "b"', '{"a": {}', '{"a": 1', '{"a": [1]'])
@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_bare_call_behind_json_without_an_end_is_a_call(before, cut):
    """A value does not follow another one without a comma, so it is not of that JSON."""
    text = f"{before}\n{TEXT}"
    told, calls = run(in_pieces(text, cut))
    assert (told.rstrip(), calls) == (before, [("add", CALL["arguments"])])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"tool_calls": [CALL]}, ""),
        ({"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": CALL}]}, ""),
        ({"function_calls": [CALL]}, ""),
        ({"toolCalls": [CALL]}, ""),
        ({"parts": [{"functionCall": {"name": "add", "args": CALL["arguments"]}}]}, ""),
        ({"tool_use": {"name": "add", "input": CALL["arguments"]}}, ""),
        ({"thought": "I add.", "action": CALL}, "I add."),
        ({"thought": "I add.", "tool": CALL}, "I add."),
        ({"content": "I add.", "id": "1", "tool_calls": [CALL], "refusal": None}, "I add."),
    ],
)
@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_calls_of_a_message_that_a_model_wrote_out_are_calls(written, said, cut):
    """Small models imitate the whole answer of an API, or a step of former agents."""
    text = json.dumps({"role": "assistant", "content": None, **written})
    assert run(in_pieces(text, cut)) == (
        said,
        [("add", CALL["arguments"])],
    )


MESSAGE = {"role": "assistant", "content": None, "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "text",
    [
        f"So:\n\n```json\n{json.dumps(MESSAGE, indent=1)}\n```\n\nThat is it.",
        f"```json\n{json.dumps([MESSAGE])}\n```",
        f"````md\n```json\n{json.dumps(MESSAGE)}\n```\n````\n",
        json.dumps({"name": "Newsletter", "parts": [CALL]}),
    ],
)
@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_messages_that_are_shown_call_nothing(text, cut):
    """An example of an API in a code block, or a document that has parts."""
    assert run(in_pieces(text, cut)) == (text, [])


@pytest.mark.parametrize(
    "begun",
    ['{"content": "A', '{"refusal": "I', '{"role": "u', '[{"role" :\n "system', '{"role": 1'],
)
def test_other_messages_flow_on_at_once(begun):
    """Those that begin with what they say, or with what another one said."""
    assert TextCallFilter(NAMES).feed(Delta(begun)) == Delta(begun)


@pytest.mark.parametrize("beside", [{"answer": 4}, {"content": ["a"]}, {"calls": [CALL]}])
@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_nothing_of_another_object_with_calls_is_lost(beside, cut):
    """What is no message stays, and what it says of calls is called."""
    text = json.dumps({"role": "assistant", **beside, "tool_calls": [CALL]})
    told, calls = run(in_pieces(text, cut))
    assert told.startswith('{"role": "assistant", ')
    assert calls[0] == ("add", CALL["arguments"])


@pytest.mark.parametrize("properties", [{"colour": "red"}, ["colour"], "colour"])
def test_a_call_may_take_what_a_definition_has(properties):
    """Who adds a node to a graph says of what type it is, and what it has."""
    given = {"type": "object", "properties": properties, "required": True}
    assert run([json.dumps({"name": "add", "parameters": given})]) == ("", [("add", given)])


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_call_in_a_tag_of_calls_is_one_within_other_json(cut):
    """The tag says that it is meant."""
    text = f'<tool_call>\n{{"action": {TEXT}}}\n</tool_call>'
    _, calls = run(in_pieces(text, cut))
    assert calls == [("add", CALL["arguments"])]


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_text_before_calls_stays_and_calls_may_follow_each_other(cut):
    """A sentence, then two calls."""
    text = f"I will add.\n\n```json\n{TEXT}\n```\n{TEXT}\n"
    pieces = in_pieces(text, cut)
    assert run(pieces) == ("I will add.", [("add", CALL["arguments"])] * 2)


def test_ordinary_text_is_not_delayed():
    """Only what begins like a call waits."""
    holdback = TextCallFilter(NAMES)
    passed = [holdback.feed(Delta(piece)) for piece in ("Hello", " there", ", you")]
    assert [delta.text for delta in passed if delta] == ["Hello", " there", ", you"]


def test_foreign_json_and_code_flow_on_at_once():
    """An answer that is JSON but no call is let go at its first key, code at its first line."""
    holdback = TextCallFilter(NAMES)
    assert holdback.feed(Delta('{"city')) is None
    assert holdback.feed(Delta('": "Par')) == Delta('{"city": "Par')
    holdback = TextCallFilter(NAMES)
    assert holdback.feed(Delta("```python\nx = 1")) == Delta("```python\nx = 1")


@pytest.mark.parametrize("wrapping", ["{}", "<tool_call>{}", "```json\n{}"])
@pytest.mark.parametrize("missing", [1, 2, 9])
def test_a_call_that_ran_out_of_tokens_is_not_completed(wrapping, missing):
    """More arguments may have stood before a brace that is missing; a whole call is one."""
    whole = json.dumps({"name": "add", "arguments": {"a": {"b": 1}}})
    for text in (wrapping.replace("{}", whole[:-missing]), whole + "\n" + whole[:-missing]):
        holdback = TextCallFilter(NAMES)
        found = [holdback.feed(Delta(text)), *holdback.end("length")]
        calls = [call for delta in found if delta for call in delta.calls]
        assert len(calls) == text.count(whole)
        assert "".join(delta.text for delta in found if delta).endswith(whole[:-missing])


@pytest.mark.parametrize("is_written_first", [False, True])
def test_text_beside_calls_that_the_server_found_is_text(is_written_first):
    """Once the server's own parser works, JSON in the text is not turned into a second call."""
    holdback = TextCallFilter(NAMES)
    chunk = {"name": "add", "args": "{}", "id": "1", "index": 0, "type": "tool_call_chunk"}
    told = [Delta(f"Now. {TEXT} Done."), Delta(calls=(chunk,))]
    found = [holdback.feed(delta) for delta in (told if is_written_first else told[::-1])]
    found += holdback.end("stop")
    assert "".join(delta.text for delta in found) == f"Now. {TEXT} Done."
    assert [call for delta in found for call in delta.calls] == [chunk]


PIECES = [
    *(
        *'{}[]`~<>\n ",:at',
        "tool_call",
        "name",
        "```",
        "````",
        "\n~~~",
        "json",
        "python\n",
        "add",
        "`x`",
    ),
    *("[TOOL_CALLS]", "<tool_call>", "</tool_call>", '{"city": ', '{"role": "a", ', '"calls": ['),
    *(TEXT, DOUBLED, TEXT[:-1], "\r\n", "{{", "}}"),
]


@given(st.lists(st.sampled_from(PIECES)))
def test_no_text_is_ever_lost(pieces):
    """Whatever is not a call comes out as it went in, and all of it alike, however it is cut."""
    whole = "".join(pieces)
    text, calls = run([whole])
    assert calls or text == whole
    assert run(pieces) == run(list(whole)) == (text, calls)


@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("written", LENIENT.values(), ids=LENIENT)
@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_braces_are_read_leniently_and_none_stays(wrapping, written, cut):
    """Doubled, missing or one too many, in every wrapping: the call, and nothing of it as text."""
    text = wrapping.replace("{}", written)
    pieces = in_pieces(text, cut)
    assert run(pieces) == ("", [("add", CALL["arguments"])])


@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_text_around_a_lenient_call_stays(cut):
    """A sentence before and one behind, without the braces in between."""
    text = f"I will add. {DOUBLED}}}}}\nDone."
    pieces = in_pieces(text, cut)
    assert run(pieces) == ("I will add.Done.", [("add", CALL["arguments"])])


@pytest.mark.parametrize("arguments", ["null", '"None"', '""', '" "', "[]", "{}", '"{}"'])
@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS)
def test_no_arguments_in_every_way(arguments, wrapping):
    """They are an empty object."""
    text = wrapping.replace("{}", f'{{"name": "now", "arguments": {arguments}}}')
    assert run([text]) == ("", [("now", {})])


def test_a_name_alone_calls_a_tool_that_needs_nothing():
    """For another tool it is an object like any other."""
    assert run(['{"name": "now"}']) == ("", [("now", {})])
    assert run(['{"name": "add"}']) == ('{"name": "add"}', [])
    assert run(['{"name": "now", "city": "Paris"}'])[1] == []


def test_an_alias_and_the_name_behind_it_are_one_tool():
    """The model sees the alias, and may have read the name elsewhere."""
    for written in ("a_b_1",):
        assert run([json.dumps({"name": written, "arguments": {}})]) == ("", [("a.b", {})])


def test_two_calls_in_one_wrapping_are_two():
    """One after the other in a code block."""
    text = f"```json\n{TEXT}\n{DOUBLED}\n```"
    assert run([text]) == ("", [("add", CALL["arguments"])] * 2)


@given(
    st.dictionaries(st.text(max_size=4), st.text('ab{}"\\ ', max_size=6), max_size=3),
    st.sampled_from(list(WRAPPINGS.values())),
    st.integers(-1, 2),
    st.booleans(),
    st.integers(1, 9),
)
def test_any_arguments_survive_any_braces(arguments, wrapping, more, doubled, cut):
    """Braces within texts are the arguments' own."""
    inner = json.dumps({"name": "add", "arguments": arguments})
    written = f"{{{inner}}}" if doubled else inner
    written = written[:more] if more < 0 else written + "}" * more
    text = wrapping.replace("{}", written, 1)
    pieces = in_pieces(text, cut)
    assert run(pieces) == ("", [("add", arguments)])


@pytest.mark.parametrize("cut", [1, 3, 99])
@pytest.mark.parametrize("before", ["[", "[ [", "[[", "{ [", "[ {", "{{ ", "[ [ {"])
def test_brackets_before_a_tag_are_text(before, cut):
    """The last of them may be the tag's own."""
    text = f'{before}[TOOL_CALLS]{{"name": "add", "arguments": {{"a": 1}}}}'
    pieces = in_pieces(text, cut)
    assert run(pieces) == (before.rstrip(), [("add", {"a": 1})])


@pytest.mark.parametrize(
    "run_of",
    [
        *(*TAGS, *TAG_ENDS, " ", "\t", "\n", "\n}", "]", "[ ", '{"', "`", "` ", "``` ", "```\n"),
        *("```json\n", "```\n~~~\n", "` ```\n", "<tool_call> ", "~~~", "~~~\n", f"[{TEXT},"),
    ],
)
@pytest.mark.parametrize("before", ["", "```\n", "```json\n", f"{TEXT}\n", f"```json\n{TEXT}\n"])
def test_no_text_takes_longer_than_it_is_long(before, run_of):
    """Looking through it holds up the whole program, and no limit of time ends that."""
    for behind in ("", "x"):
        run([before + run_of * (100_000 // len(run_of)) + behind])


@pytest.mark.parametrize("block", ['```json\n{"name": 1}\n```\n', '```json\n{"name": x}\n```\n'])
def test_no_code_block_is_looked_through_to_the_end_of_the_answer(block):
    """Whether it has ended shows before the next one begins."""
    text = block * (500_000 // len(block))
    assert run([text]) == (text, [])
