"""Typed questions: probabilities of labels from the first token, in both orders, or an error."""

import asyncio
import base64
import copy
import json
import math
import pickle
import subprocess
import sys
import warnings

import pytest
from fakes.reply import Reply
from langchain_core import exceptions as core
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from unit.decisions.asking import TEAM, ask, asked
from unit.wire.test_media import RED

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError, ConfigurationError

decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")

Box, Choice, Noul, Score = (getattr(decisions, name) for name in ("Box", "Choice", "Noul", "Score"))


def test_every_kind_of_question_is_answered(decide, server):
    """Probabilities add up to one; levels have a mean; usage is that of all requests."""
    questions = {
        "urgent": Noul(instructions="Is it urgent?"),
        "team": Choice(instructions="Who helps?", criteria=TEAM),
        "anger": Score(instructions="How angry?", criteria=["calm", "annoyed", "furious"]),
    }
    found = decide.invoke({"state": "My card was charged twice.", "questions": questions})
    assert found.nouls["urgent"].noul == pytest.approx(2 / 3)
    assert sum(found.choices["team"].probabilities.values()) == pytest.approx(1)
    assert found.choices["team"].choice == "billing"
    assert found.choices["team"].confidence == found.choices["team"].probabilities["billing"]
    anger = found.scores["anger"]
    assert anger.score == pytest.approx((0 * 2 + 1 + 2) / 4)
    assert anger.legend == {0: "calm", 1: "annoyed", 2: "furious"}
    assert found.usage["total_tokens"] == 4 * 31
    assert (found.model, found.request_id) == ("m", "chatcmpl-1")
    bodies = server.dialect.requests
    assert {body["max_tokens"] for body in bodies} == {1}
    assert {body["enable_thinking"] for body in bodies} == {False}
    assert (
        asyncio.run(decide.ainvoke({"state": "My card was charged twice.", "questions": questions}))
        == found
    )


@pytest.mark.parametrize("given", [{"keep_alive": 0}, {"stop": ["a"]}])
def test_a_parameter_of_a_call_is_refused(decide, server, given):
    """There are none: it would be dropped in silence."""
    request = {"state": "x", "questions": {"urgent": Noul(instructions="Is it urgent?")}}
    calls = [
        lambda: decide.invoke(request, **given),
        lambda: asyncio.run(decide.ainvoke(request, **given)),
        lambda: decide.bind(**given).batch([request]),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=next(iter(given))):
            call()
    assert not server.dialect.requests


def test_labels_are_compared_as_a_whole_and_in_both_orders(decide, server):
    """Labels that begin alike have keys of their own, and a favoured place favours nobody."""
    plain = dict.fromkeys(("first label", "first thing", "last"))
    question = Choice(instructions="Which?", criteria=plain)
    both = ask(decide, "x", q=question).choices["q"].probabilities
    assert both["first label"] == pytest.approx(both["last"])
    one = decide.model_copy(update={"both_orders": False})
    biased = ask(one, "x", q=question).choices["q"].probabilities
    assert biased["first label"] == pytest.approx(2 * biased["last"])
    assert [len(server.dialect.requests)] == [3]


def test_states_of_every_form_reach_the_model(decide, server):
    """Text, messages, JSON with messages in it, and media, which go along as media."""
    question = Noul(instructions={"ask": "Risky?"}, criteria={"true": "It is.", "false": ["no", 1]})
    call = {"name": "rm", "args": {"path": "/"}, "id": "1", "type": "tool_call"}
    messages = [
        HumanMessage("clean up"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("ok", tool_call_id="1"),
    ]
    ask(decide, HumanMessage("only this"), q=question)
    assert "<state>\nonly this\n</state>" in asked(server.dialect.requests[-1])
    ask(decide, messages, q=question)
    assert 'ai:  [{"name": "rm", "args": {"path": "/"}}]' in asked(server.dialect.requests[-1])
    ask(decide, {"messages": messages, "n": 1, "nothing": None}, q=question)
    text = asked(server.dialect.requests[-1])
    assert '"role": "human", "content": "clean up"' in text
    assert 'Yes: It is.\nNo: ["no", 1]' in text
    image = {
        "type": "image",
        "base64": base64.b64encode(RED).decode(),
        "mime_type": "image/png",
    }
    shown = HumanMessage([{"type": "text", "text": "look"}, image])
    ask(decide, {"message": shown}, q=question)
    content = server.dialect.requests[-1]["messages"][-1]["content"]
    assert content[0]["type"] == "image_url"
    assert "look [image 1]" in content[-1]["text"]


def test_half_a_character_in_a_state_ends_no_thread(decide, server):
    """A tool has written it, and the chat model of the same agent was given it, too."""
    state = [HumanMessage("hi"), ToolMessage("a\ud800b", tool_call_id="1")]
    for found in (state, {"messages": state}, "a\ud800b", {"\ud800": "b"}):
        ask(decide, found, q={"type": "noul", "instructions": "Fine?"})
        assert "\N{REPLACEMENT CHARACTER}" in asked(server.dialect.requests[-1])


def test_a_box_is_found_in_an_image_alone(decide, server):
    """Edges come as fractions of the image, in their order."""
    edges = {"top": 500, "left": 0, "bottom": 100, "right": 1000}
    server.dialect.script = lambda body: Reply(text=json.dumps(edges))
    image = {
        "type": "image",
        "base64": base64.b64encode(RED).decode(),
        "mime_type": "image/png",
    }
    found = ask(decide, [image], where=Box(instructions="the moon")).boxes["where"]
    assert found.box.model_dump() == {"top": 0.1, "bottom": 0.5, "left": 0.0, "right": 1.0}
    assert found.confidence is None
    with pytest.raises(ConfigurationError, match="image"):
        ask(decide, "no image", where=Box(instructions="the moon"))


@pytest.mark.parametrize(
    "questions",
    [
        {},
        {"q": 5},
        {"q": {"type": "riddle", "instructions": "?"}},
        {
            "q": {
                "type": "choice",
                "instructions": "?",
                "criteria": {str(n): None for n in range(21)},
            }
        },
    ],
)
def test_what_cannot_be_asked_is_refused(decide, server, questions):
    """Before anybody is asked."""
    with pytest.raises(ConfigurationError, match="question"):
        decide.invoke({"state": "x", "questions": questions})
    assert server.dialect.requests == []


def test_a_model_that_answers_something_else_is_told(decide, server):
    """An error where no label is likely, a warning where they have little of the probability."""
    from langchain_car_vllm import UnlabelledAnswerWarning

    question = Noul(instructions="?")
    server.dialect.script = lambda body: Reply(text="Well", likely={"Well": -0.1})
    with pytest.raises(core.ModelAPIError, match="none of the labels of `q`"):
        ask(decide, "x", q=question)
    server.dialect.script = lambda body: Reply(
        text="Well", likely={"Well": -0.1, "yes": -5, "NO": -5}
    )
    with pytest.warns(UnlabelledAnswerWarning, match="only 1%"):
        assert ask(decide, "x", q=question).nouls["q"].noul == pytest.approx(0.5)


@pytest.mark.parametrize(
    "likely",
    [
        {"Yes": "high"},
        {"Yes": None},
        {"Yes": math.nan, "No": -1},
        {"Yes": math.inf, "No": -1},
        {"Yes": 7.5, "No": 3.25},
        {"Yes": -0.1, "No": -0.1},
    ],
)
def test_odd_probabilities_are_a_typed_error(decide, server, likely):
    """Never an error of Python's own."""
    server.dialect.script = lambda body: Reply(text="Yes", likely=likely)
    with pytest.raises(CarVllmError):
        ask(decide, "x", q=Noul(instructions="?"))


def test_it_shares_the_server_of_a_chat_model_and_survives_copies(decide):
    """The same key, pickled and written down without secrets, and loaded again."""
    from langchain_car_vllm import VllmMlxDecisions

    settings = {
        "model": "org/model",
        "server_args": ["--x"],
        "engine": "simple",
        "keep_alive": "1h",
    }
    mine = VllmMlxDecisions(**settings)
    chat = ChatVllmMlx(**settings)
    assert mine._chat()._spec(engine=mine.engine) == chat._spec(engine=chat.engine)
    secret = VllmMlxDecisions(model="org/model", server_env={"T": "s3cret"})
    assert "s3cret" not in repr(secret) + json.dumps(dumpd(secret))
    question = Noul(instructions="?")
    expected = ask(decide, "x", q=question)
    for other in (pickle.loads(pickle.dumps(decide)), copy.deepcopy(decide)):
        assert ask(other, "x", q=question) == expected
    written = dumpd(VllmMlxDecisions(model="org/model", both_orders=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load` is in beta, and says so once per process
        loaded = load(
            written, allowed_objects=[VllmMlxDecisions], valid_namespaces=["langchain_car_vllm"]
        )
    assert loaded.both_orders is False
    with pytest.raises(ConfigurationError, match="both_orders"):
        VllmMlxDecisions(model="org/model", both_order=True)


def test_an_older_core_says_what_it_lacks(tmp_path):
    """The name is absent there, nothing else is, and asking for it says why."""
    code = """
import importlib.util, os
isdir = os.path.isdir
os.path.isdir = lambda path: not str(path).endswith("decisions") and isdir(path)
import langchain_car_vllm
assert "VllmMlxDecisions" not in dir(langchain_car_vllm)
from langchain_car_vllm import *
try:
    from langchain_car_vllm import VllmMlxDecisions
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("VllmMlxDecisions needs langchain-core 1.8 or newer")


@pytest.mark.parametrize(
    "request_of",
    [None, "x", {}, {"state": "x"}, {"questions": {}}, {"state": "x", "questions": []}],
)
def test_what_is_not_a_request_is_told_in_words(decide, request_of):
    """Waiting and awaited; it was a `KeyError` or a `TypeError` of Python's."""
    for call in (decide.invoke, lambda given: asyncio.run(decide.ainvoke(given))):
        with pytest.raises(ConfigurationError, match="questions"):
            call(request_of)
