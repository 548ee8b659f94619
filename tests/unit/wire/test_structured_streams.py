"""The object that a stream ends with is the one that a whole answer gives."""

import asyncio
import json
from typing import Any

import pytest
from fakes.objects import Person
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk

from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.output_parser import parser_for


async def _all(chain: Any) -> list[Any]:
    return [part async for part in chain.astream("go")]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (Person, '\N{NO-BREAK SPACE}{"name": "Ann", "age": 7}\u2003'),
        (None, '\N{NO-BREAK SPACE}{"name": "Ann", "age": 7}'),
        (None, '{"name": "\\ud83d"}'),
    ],
)
def test_a_stream_ends_with_the_object_of_the_whole(serve, schema, text):
    """It ended with nothing, or with half a character."""
    model, _ = serve(Reply(text=text))
    method = "json_mode" if schema is None else "json_schema"
    chain = model.with_structured_output(schema, method=method)
    whole = chain.invoke("go")
    assert list(chain.stream("go"))[-1] == whole
    assert asyncio.run(_all(chain))[-1] == whole


def test_an_object_is_not_given_twice(serve):
    """What came last is the whole, nearly always."""
    model, _ = serve(Reply(pieces=['{"name": "Ann", ', '"age": 7', "}"]))
    parts = list(model.with_structured_output(Person).stream("go"))
    assert parts.count({"name": "Ann", "age": 7}) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    value=st.dictionaries(st.text(), JSON),
    is_ascii=st.booleans(),
    before=st.sampled_from(["", " ", "\n", "\N{NO-BREAK SPACE}", "\v", "```json\n", "\ufeff"]),
    after=st.sampled_from(["", "\n", "\N{NO-BREAK SPACE}", "\n```", "`", "}", "\0"]),
    data=st.data(),
)
def test_any_text_gives_the_same_in_parts_and_as_a_whole(value, is_ascii, before, after, data):
    """The same object, or an error in both."""
    text = before + json.dumps(value, ensure_ascii=is_ascii) + after
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parser = parser_for(None, "json_mode")
    found = []
    for give in (
        lambda: parser.invoke(AIMessage(text)),
        lambda: list(parser.transform(map(AIMessageChunk, parts)))[-1],
    ):
        try:
            found.append(repr(give()))
        except StructuredOutputError:
            found.append(None)
    assert found[0] == found[1]
