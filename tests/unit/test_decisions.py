"""Typed questions: probabilities of labels from the first token, in both orders, or an error."""

import asyncio
import base64
import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from fakes.vocabulary import Vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core import exceptions as core
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from unit.wire.test_media import RED

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.label_bisection import Alphabet, compare_labels

decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
Box, Choice, Noul, Score = (getattr(decisions, name) for name in ("Box", "Choice", "Noul", "Score"))


@pytest.fixture
def server() -> Iterator[Server]:
    """A model that prefers the first place a little, and the word `billing` much."""
    with Server(Dialect("m", multimodal=True)) as running:
        running.dialect.script = choosing
        yield running


@pytest.fixture
def decide(server: Server):
    """A decision model that asks it."""
    from langchain_car_vllm import VllmMlxDecisions

    return VllmMlxDecisions(model="m", base_url=server.base_url)


def choosing(body) -> Reply:
    """Give the first place twice what the others get, and `billing` six times as much."""
    text = asked(body)
    keys = text.rpartition("Answer with one of ")[2].partition(" and ")[0].split(", ")
    lines = [line for line in text.splitlines() if line.partition(":")[0] in keys]
    weights = [
        (2 if place == 0 else 1) * (6 if "billing" in line else 1)
        for place, line in enumerate(lines)
    ]
    likely = {
        f" {key}": math.log(0.9 * weight / sum(weights))
        for key, weight in zip(keys, weights, strict=True)
    }
    return Reply(text=" " + keys[0], likely=likely, usage=(30, 1))


def asked(body) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


TEAM = {"billing": "Payments and invoices.", "billing disputes": None, "other": {"a": 1}}


def ask(decide, state, **questions):
    return decide.invoke({"state": state, "questions": questions})


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
    from langchain_car_vllm.decisions import UnlabelledAnswerWarning

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


@pytest.mark.filterwarnings("ignore:The middleware")
@pytest.mark.parametrize("risk", [0.9, 0.1])
def test_risky_calls_are_blocked_locally(decide, server, risk):
    """LangChain's middleware for risky calls takes it: a call runs or is turned away."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import AutoModeMiddleware
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel

    ran = []

    def remove(path: str) -> str:
        """Remove a file."""
        ran.append(path)
        return "removed"

    class Calling(GenericFakeChatModel):
        def bind_tools(self, tools, **kwargs):
            return self

    call = {"name": "remove", "args": {"path": "/"}, "id": "1", "type": "tool_call"}
    answers = iter([AIMessage("", tool_calls=[call]), AIMessage("done")])
    likely = {"Yes": math.log(risk), "No": math.log(1 - risk)}
    server.dialect.script = lambda body: Reply(text="Yes", likely=likely)
    guard = AutoModeMiddleware(tools=["remove"], classifier=decide)
    agent = create_agent(Calling(messages=answers), tools=[remove], middleware=[guard])
    found = agent.invoke({"messages": [HumanMessage("tidy up")]})
    assert bool(ran) is (risk < 0.5)
    assert found["messages"][-1].text == "done"


@pytest.mark.filterwarnings("ignore:The middleware")
def test_agents_are_routed_locally(decide):
    """LangChain's middleware for routes takes it."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import ModelRouterMiddleware
    from langchain.agents.middleware.model_router import ModelChoice
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel

    def saying(text: str) -> GenericFakeChatModel:
        return GenericFakeChatModel(messages=iter([AIMessage(text)]))

    choices = {
        "billing": ModelChoice(model=saying("paid"), criteria="money"),
        "rest": ModelChoice(model=saying("rest"), criteria="all else"),
    }
    router = ModelRouterMiddleware(choices=choices, instructions="Who helps?", classifier=decide)
    agent = create_agent(saying("nobody"), middleware=[router])
    found = agent.invoke({"messages": [HumanMessage("my card")]})
    assert found["messages"][-1].text == "paid"


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


def choosing_plainly(body) -> Reply:
    """Do the same with tokens that have no space before them."""
    reply = choosing(body)
    likely = {key.strip(): value for key, value in reply.likely.items()}
    return dataclasses.replace(reply, text=max(likely, key=likely.get), likely=likely)


def plain_server(server, **vocabulary):
    """Make it one that tells no log probabilities, as a `vllm-mlx` that was started by hand."""
    server.dialect.script = choosing_plainly
    server.dialect.tells_logprobs = False
    server.dialect.vocabulary = Vocabulary(**vocabulary)


async def ask_in_loop(decide, state, **questions):
    return await decide.ainvoke({"state": state, "questions": questions})


@pytest.fixture(autouse=True)
def _unknown_alphabets(monkeypatch):
    """Each test meets its server for the first time."""
    monkeypatch.setattr("langchain_car_vllm.decisions._alphabets", {})


QUESTIONS = {
    "team": Choice(instructions="Who helps?", criteria=TEAM),
    "anger": Score(instructions="How angry?", criteria=["calm", "annoyed", "furious"]),
    "urgent": Noul(instructions="Is it urgent?"),
}


@pytest.mark.parametrize(("offset", "loop"), [(-33, False), (-16, True), (1000, False)])
def test_a_server_without_log_probabilities_tells_the_same(decide, server, offset, loop):
    """Wherever its vocabulary has the characters; the number of requests is bounded."""
    told = ask(decide, "x", **QUESTIONS)
    server.dialect.requests.clear()
    plain_server(server, offset=offset)
    asked_again = partial(ask_in_loop, decide) if loop else partial(ask, decide)
    found = asked_again("x", **QUESTIONS)
    found = asyncio.run(found) if loop else found
    for name, share in told.choices["team"].probabilities.items():
        assert found.choices["team"].probabilities[name] == pytest.approx(share, rel=0.05)
    assert found.scores["anger"].score == pytest.approx(told.scores["anger"].score, rel=0.05)
    assert found.nouls["urgent"].noul == pytest.approx(told.nouls["urgent"].noul, rel=0.05)
    ways = [3, 3, 3, 2]  # the choice in both orders
    bodies = server.dialect.requests
    assert len(bodies) <= 4 + 3 + sum(8 * labels + 4 for labels in ways)
    assert {body["max_tokens"] for body in bodies} == {1}
    assert {body["temperature"] for body in bodies} == {0}
    assert found.usage["total_tokens"] == 31 * (len(bodies) - 3)


@settings(max_examples=15)
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=5), st.sampled_from([0.0, 0.125]))
def test_any_shares_are_found(weights, grain):
    """Also in 16 bits, where a logit is known to an eighth."""
    total = sum(weights)
    likely = dict(zip("ABCDE", (math.log(w / total) for w in weights), strict=False))
    vocabulary = Vocabulary(grain=grain)
    steps = compare_labels("ABCDE"[: len(weights)], Alphabet(-16))
    bias, count, shares = next(steps), 0, []
    while not shares:
        count += 1
        try:
            bias = steps.send(vocabulary.likeliest(likely, bias))
        except StopIteration as end:
            shares = end.value.shares
    for share, weight in zip(shares, weights, strict=True):
        assert share / sum(shares) == pytest.approx(weight / total, rel=0.05 + 2 * grain, abs=0.002)
    assert count <= 8 * len(weights) + 4


def test_labels_that_the_model_would_not_write_are_favoured_and_told(decide, server):
    """Their shares are right among each other, and a warning says that the model strays."""
    from langchain_car_vllm.decisions import UnlabelledAnswerWarning

    plain_server(server)
    likely = {"Well": -0.01, "A": -9.0, "B": -10.0}
    server.dialect.script = lambda body: Reply(text="Well", likely=likely)
    with pytest.warns(UnlabelledAnswerWarning, match="something else"):
        found = ask(decide, "x", q=Noul(instructions="?"))
    assert found.nouls["q"].noul == pytest.approx(1 / (1 + math.exp(-1)), rel=0.05)


def test_labels_that_are_written_with_other_tokens_are_a_typed_error(decide, server):
    """Such as ones that begin with a space: what is known is about those without."""
    plain_server(server)
    server.dialect.script = choosing
    with pytest.raises(core.ModelInvalidRequestError, match="cannot be found out"):
        ask(decide, "x", q=Noul(instructions="?"))


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        (None, "ignores `logit_bias`"),
        (Vocabulary(offset=3), "cannot be found out"),
        (Vocabulary(offset=-30, is_written=False), "cannot be found out"),
        (Vocabulary(offset=200_000), "cannot be found out"),
    ],
)
def test_a_server_that_cannot_be_compared_is_a_typed_error(decide, server, vocabulary, said):
    """One that ignores the bias, or has the characters elsewhere, and what to do about it."""
    plain_server(server)
    server.dialect.vocabulary = vocabulary
    with pytest.raises(core.ModelInvalidRequestError, match=said) as caught:
        ask(decide, "x", q=Noul(instructions="?"))
    assert "base_url" in caught.value.hint
    assert len(server.dialect.requests) <= 8


def test_what_is_refused_for_another_reason_is_no_comparison(decide, server):
    """One request, and its own error; a server that refuses log probabilities is compared."""
    server.dialect.script = lambda body: Reply(status=400, detail="no")
    with pytest.raises(core.ModelInvalidRequestError, match="no"):
        ask(decide, "x", q=Noul(instructions="?"))
    assert len(server.dialect.requests) == 1

    def refusing(body):
        if body.get("logprobs"):
            return Reply(status=400, detail="logprobs are not supported")
        return choosing_plainly(body)

    server.dialect.script = refusing
    found = ask(decide, "x", q=Noul(instructions="?"))
    assert found.nouls["q"].noul == pytest.approx(0.67, abs=0.03)


def test_another_model_under_the_same_name_is_met_anew(decide, server):
    """What was learnt of the former one's vocabulary is given up with the first failure."""
    plain_server(server, offset=-16)
    question = Noul(instructions="?")
    ask(decide, "x", q=question)
    plain_server(server, offset=-33)
    with pytest.raises(CarVllmError):
        ask(decide, "x", q=question)
    assert ask(decide, "x", q=question).nouls["q"].noul == pytest.approx(0.67, abs=0.03)
