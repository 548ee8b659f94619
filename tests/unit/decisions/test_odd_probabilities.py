"""What other servers tell of probabilities, and what users ask, that leads to a wrong answer."""

import itertools
import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_car_vllm.errors import CarVllmError, ConfigurationError, InvalidRequestError

decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
Choice, Noul = decisions.Choice, decisions.Noul


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that says what a test has it say."""
    with Server(Dialect("m")) as running:
        yield running


@pytest.fixture(scope="module")
def decide(server: Server):
    """A decision model that asks it."""
    from langchain_car_vllm import VllmMlxDecisions

    return VllmMlxDecisions(model="m", base_url=server.base_url)


def telling(logprobs) -> Reply:
    """Return a whole answer of one word with just these log probabilities."""
    message = {"role": "assistant", "content": "Yes"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    return Reply(raw=json.dumps({"id": "1", "choices": [choice]}).encode())


def entry(top, logprob=-0.9, token="Yes"):
    return {"content": [{"token": token, "logprob": logprob, "top_logprobs": top}]}


def ask(decide, state="x", **questions):
    return decide.invoke({"state": state, "questions": questions})


@pytest.mark.parametrize("turned", [False, True])
def test_tokens_of_one_text_count_together(decide, server, turned):
    """A letter and its byte are two tokens in many vocabularies: the last one counted alone."""
    likely = [("Yes", 0.8), ("No", 0.1), ("Yes", 0.0001), ("No", 0.05)]
    top = [{"token": text, "logprob": math.log(share)} for text, share in likely]
    server.dialect.script = lambda _: telling(entry(top[::-1] if turned else top))
    noul = ask(decide, urgent=Noul(instructions="Urgent?")).nouls["urgent"].noul
    assert noul == pytest.approx(0.8001 / 0.9501)


@pytest.mark.parametrize(
    "logprobs",
    [
        entry([]),
        entry(None),
        {"content": [{"token": "Yes", "logprob": -0.9}]},
        entry([{"token": "Yes", "logprob": -0.9}]),
        entry([{"token": "Yes", "logprob": -0.9}, {"token": "Well", "logprob": -1.5}]),
        {"content": []},
        {"content": None},
        {},
        {"tokens": ["Yes"], "token_logprobs": [-0.1], "top_logprobs": [{"Yes": -0.1}]},
    ],
)
def test_a_server_that_tells_too_few_tokens_is_one_that_tells_none(decide, server, logprobs):
    """A label that it leaves out may be nearly as likely, and is not impossible."""
    server.dialect.script = lambda body: telling(logprobs)
    with pytest.raises(InvalidRequestError, match="log probabilities"):
        ask(decide, q=Noul(instructions="?"))


def test_a_label_that_cannot_be_likely_may_be_left_out(decide, server):
    """What remains for it is next to nothing."""
    server.dialect.script = lambda body: telling(entry([], logprob=-0.001))
    assert ask(decide, q=Noul(instructions="?")).nouls["q"].noul == 1.0


def test_the_token_that_was_written_counts_once(decide, server):
    """Some servers write it in two ways, plain and as their vocabulary has it."""
    top = [{"token": "\u2581Yes", "logprob": math.log(0.6)}, {"token": "No", "logprob": -0.92}]
    server.dialect.script = lambda body: telling(entry(top, logprob=math.log(0.6)))
    assert ask(decide, q=Noul(instructions="?")).nouls["q"].noul == pytest.approx(0.6, abs=0.01)


ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.sampled_from(["Yes", "No"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "token", "logprob", "top_logprobs"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=25)
@given(logprobs=ODD | ODD.map(lambda odd: {"content": [odd]}) | ODD.map(entry))
def test_whatever_is_told_is_an_answer_or_a_typed_error(decide, server, logprobs):
    """An answer is a probability, and no label has one out of nothing."""
    server.dialect.script = lambda body: telling(logprobs)
    try:
        found = ask(decide, q=Noul(instructions="?")).nouls["q"].noul
    except CarVllmError:
        return
    assert 0 <= found <= 1


class Mute:
    """Its text is an address in memory."""


def circle():
    found: dict[str, object] = {}
    found["itself"] = [found]
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"bytes",
        lambda: bytearray(b"bytes"),
        lambda: {"deep": [memoryview(b"x")]},
        lambda: (word for word in "ab"),
        lambda: {"deep": itertools.count()},
        lambda: map(str, [1]),
        Mute,
        lambda: [Mute()],
        circle,
    ],
)
def test_a_state_that_no_text_says_is_refused(decide, server, make):
    """A model would judge `<generator object>`; nobody is asked."""
    before = len(server.dialect.requests)
    with pytest.raises(ConfigurationError, match="a state or a question"):
        ask(decide, make(), q=Noul(instructions="?"))
    assert len(server.dialect.requests) == before


def test_values_with_a_text_of_their_own_are_told(decide, server):
    """Such as a path or a UUID in a record."""
    server.dialect.script = lambda body: telling(entry([], logprob=-0.001))
    ask(decide, {"path": Path("/a"), "id": uuid.UUID(int=1)}, q=Noul(instructions="?"))
    asked = server.dialect.requests[-1]["messages"][-1]["content"]
    assert '"path": "/a"' in asked
    assert str(uuid.UUID(int=1)) in asked


def test_a_question_without_a_name_is_refused(decide, server):
    """Before anybody is asked: the answer could not be given under it."""
    before = len(server.dialect.requests)
    with pytest.raises(ConfigurationError, match="name of a question"):
        decide.invoke({"state": "x", "questions": {1: Noul(instructions="?")}})
    assert len(server.dialect.requests) == before
