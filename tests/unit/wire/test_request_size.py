"""Whether a request fits: what is known before anybody counts, and what a count says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.errors import PromptTooLongError
from langchain_car_vllm.wire.request.token_count import (
    PromptLimit,
    RequestSize,
    measure_foreign_request,
    measure_request,
    prompt_limit,
)

few, some = st.integers(0, 20_000), st.none() | st.integers(1, 20_000)
sizes = st.builds(RequestSize, few, few, some)
limits = st.builds(PromptLimit, some, st.just(()))


def is_refused(size: RequestSize, *terms: Any) -> bool:
    try:
        size.asked_tokens(*terms)
    except PromptTooLongError:
        return True
    return False


@given(sizes, limits, some)
def test_what_needs_no_count_fits(size: RequestSize, limit: PromptLimit, room: int | None):
    """Nobody is asked for a number that changes nothing, and no more is asked for than there is."""
    if not size.needs_count(limit, room):
        assert size.asked_tokens(limit, room) <= (room or 10**9)


@given(sizes, limits, some, few)
def test_a_count_decides(size: RequestSize, limit: PromptLimit, room: int | None, counted: int):
    """A prompt is refused where it is too long for the window, or with its answer for the room."""
    least = counted + size.media_tokens + (size.answer_tokens or 1)
    is_longer = limit.tokens is not None and counted > limit.tokens
    is_too_long = is_longer or (room is not None and least > room)
    assert is_refused(size, limit, room, counted) is is_too_long


@given(sizes, some)
def test_without_a_count_only_the_impossible_is_refused(size: RequestSize, room: int | None):
    """Few tokens have more than eight bytes; the server says the rest."""
    least = size.text_bytes // 8 + (size.answer_tokens or 1)
    assert is_refused(size, PromptLimit(None), room) is (room is not None and least > room)


def test_a_request_is_measured_with_its_tools_and_media():
    """Bytes, not characters; an answer without a limit has none."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "żółw"}, image]}]
    plain = measure_request({"messages": messages})
    assert plain == (7, 1500, None)
    asked = measure_request({"messages": messages, "tools": [{"a": 1}], "max_tokens": 5})
    assert asked == (7 + len('{"a": 1}'), 1500, 5)


@pytest.mark.parametrize("room", [None, 10])
def test_the_window_is_named_before_the_memory(room: int | None):
    """Where both are too small, the one that no setting changes is told."""
    with pytest.raises(PromptTooLongError, match="the context window has 5"):
        RequestSize(100, 0, 100).asked_tokens(PromptLimit(5), room, counted=50)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((5, 6, 7), "the context window has 5"),
        ((5, 5, 5), "the context window has 5"),
        ((6, 5, 5), "the memory set aside for this model has room for 5"),
        ((None, None, 5), "`max_input_tokens` allows 5"),
    ],
)
def test_the_limit_that_binds_is_named(limits: tuple[int | None, ...], said: str):
    """What to do about it differs; where two are equal, the one that no setting changes is told."""
    with pytest.raises(PromptTooLongError, match=said):
        RequestSize(100, 0, 100).asked_tokens(prompt_limit(*limits), counted=50)
    assert prompt_limit(None, None, None).tokens is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
names = st.sampled_from(
    ["messages", "system", "prompt", "input", "max_tokens", "max_output_tokens"]
)


@given(st.dictionaries(names, values), some)
def test_any_request_of_another_program_reserves_what_there_is(body: object, room: int | None):
    """At least a token, never more than the room; only a prompt that cannot fit is refused."""
    size = measure_foreign_request(body)
    try:
        tokens = size.reserved_tokens(room)
    except PromptTooLongError:
        assert room is not None
        assert size.text_bytes // 8 >= room
        return
    assert 1 <= tokens <= (room or float("inf"))


def test_what_another_programs_request_holds_is_measured_wherever_it_stands():
    """Anthropic's tool results, OpenAI's inputs; media by what they take, not by their bytes."""
    text, picture = "a word " * 100, "/9j/" + "A" * 40_000
    result = {"type": "tool_result", "content": [{"type": "text", "text": text}]}
    source = {"type": "base64", "data": picture}
    asked = {"messages": [{"role": "user", "content": [result, {"source": source}]}]}
    size = measure_foreign_request({**asked, "max_tokens": 9})
    assert size.text_bytes in range(len(text), len(text) + 100)
    assert (size.media_tokens, size.answer_tokens) == (1500, 9)
    sound = {"audio_url": {"url": "data:audio/wav;base64,AAAA"}}
    found = measure_foreign_request({"input": [sound]})
    assert (found.text_bytes < 50, found.media_tokens, found.answer_tokens) == (True, 4000, None)


def test_a_tools_schema_is_measured_with_its_names():
    """They are a third of it and more, and the model reads all of them."""
    properties = {f"name_of_parameter_{n}": {"type": "string"} for n in range(100)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    tool = {"name": "t", "input_schema": schema}
    size = measure_foreign_request({"messages": [], "tools": [tool]})
    assert size.text_bytes > 0.7 * len(json.dumps(tool, separators=(",", ":")))
