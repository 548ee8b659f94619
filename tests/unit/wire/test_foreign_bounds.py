"""The bound of an answer as OpenAI's own clients name it, which the server does not read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.wire.request.foreign_bounds import may_need_bound, with_bound

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
bounds = st.none() | st.integers(-1, 100) | st.just(10**6)


@given(
    st.dictionaries(st.text(), values, max_size=3),
    st.fixed_dictionaries({}, optional={"max_tokens": bounds, "max_completion_tokens": bounds}),
    st.sampled_from(["", "\n", " \t\r\n"]),
    st.booleans(),
)
def test_a_bound_is_said_once_more_and_nothing_else_changes(rest, said, end: str, escaped: bool):
    """Whatever stands around it; the server's own name, and what bounds nothing, stay alone."""
    body = (json.dumps({**rest, **said}, ensure_ascii=escaped) + end).encode(errors="surrogatepass")
    asked = json.loads(body)
    found = json.loads(with_bound(body))
    bound = asked.get("max_completion_tokens")
    if asked.get("max_tokens") is None and bound is not None and bound < 32_768:
        assert may_need_bound(body)
        asked["max_tokens"] = bound
    assert found == asked


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"max_completion_tokens"', b'{"max_completion_tokens": 1', b"[" * 10**5],
)
def test_what_is_no_request_stays(body: bytes):
    """The server says what is wrong with it."""
    assert with_bound(body) == body
