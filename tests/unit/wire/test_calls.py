"""A call from end to end: what goes out, what comes back, in all four ways of calling."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from fakes.reply import Reply
from langchain_core.messages import AIMessage
from unit.wire.calling import WAYS, streamed, tool

from langchain_car_vllm import EmptyAnswerWarning
from langchain_car_vllm.endpoint import Endpoint, Parsers
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.exchange.strategy import body_for


@pytest.fixture(params=WAYS)
def ask(request: pytest.FixtureRequest) -> Callable[..., AIMessage]:
    """Each of the four ways to call."""
    return WAYS[request.param]


def test_every_way_of_calling_gives_the_same_message(serve, ask):
    """Text, reasoning, usage and metadata are those the server gave."""
    model, _ = serve(Reply(text="Hello there", thought="let me think", usage=(21, 3)))
    answer = ask(model, "hi")
    assert answer.content == "Hello there"
    assert answer.additional_kwargs == {"reasoning_content": "let me think"}
    assert answer.usage_metadata == {"input_tokens": 21, "output_tokens": 3, "total_tokens": 24}
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "m"
    assert answer.response_metadata["model_provider"] == "vllm_mlx"


def test_a_batch_of_eight_answers_all(serve):
    """Eight parallel calls of one model object are answered, each with its own text."""
    model, dialect = serve(lambda body: Reply(text=f"echo {body['messages'][-1]['content']}"))
    answers = model.batch([str(n) for n in range(8)])
    assert [answer.content for answer in answers] == [f"echo {n}" for n in range(8)]
    assert len(dialect.requests) == 8


def test_max_tokens_keeps_the_name_the_server_reads(serve, ask):
    """`max_tokens` goes out as such and never as `max_completion_tokens`."""
    model, dialect = serve(max_tokens=9)
    ask(model, "hi")
    ask(model, "hi", max_tokens=5)
    assert [body["max_tokens"] for body in dialect.requests] == [9, 5]
    assert not any("max_completion_tokens" in body for body in dialect.requests)


def test_reasoning_arrives_and_goes_back(serve, ask):
    """What the model thought is kept on the message and sent back in the history."""
    model, dialect = serve(Reply(text="four", thought="two and two"))
    answer = ask(model, "2+2?")
    assert answer.additional_kwargs["reasoning_content"] == "two and two"
    model.invoke([("human", "2+2?"), answer, ("human", "sure?")])
    sent = dialect.requests[-1]["messages"][1]
    assert (sent["role"], sent["content"]) == ("assistant", "four")
    assert sent["reasoning_content"] == "two and two"


def test_reasoning_goes_back_from_v1_blocks_too(serve):
    """With `output_version="v1"` the reasoning is a block of the content."""
    model, dialect = serve(Reply(text="four", thought="two and two"), output_version="v1")
    answer = model.invoke("2+2?")
    assert [block["type"] for block in answer.content] == ["reasoning", "text"]
    model.invoke([("human", "2+2?"), answer, ("human", "sure?")])
    sent = dialect.requests[-1]["messages"][1]
    assert sent == {"role": "assistant", "content": "four", "reasoning_content": "two and two"}


@pytest.mark.parametrize("one_index", [False, True])
def test_streamed_reasoning_and_calls_stay_apart_in_v1(serve, one_index):
    """With `output_version="v1"` a streamed call is not merged into the reasoning block."""
    calls = [("add", {"a": 3}), ("add", {"a": 4})]
    reply = Reply(thought="use the tool", calls=calls, one_index=one_index)
    model, _ = serve(reply, output_version="v1")
    whole = streamed(model, "go", tools=[tool("add")])
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds == ["reasoning", "tool_call", "tool_call"]
    assert [call["args"] for call in whole.tool_calls] == [{"a": 3}, {"a": 4}]


def test_usage_is_counted_once(serve):
    """The server tells it on the finish chunk and again on one of its own."""
    model, _ = serve(Reply(text="one two three", usage=(21, 3), cached=16))
    chunks = list(model.stream("hi"))
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert counted == [
        {
            "input_tokens": 21,
            "output_tokens": 3,
            "total_tokens": 24,
            "input_token_details": {"cache_read": 16},
        }
    ]


def test_a_parser_that_swallows_the_answer_yields_no_empty_message(serve, ask):
    """Where all of a finished answer came as reasoning, it is the answer as well."""
    model, _ = serve(Reply(thought="The answer is four."))
    assert ask(model, "2+2?").content == "The answer is four."


def test_thinking_without_an_end_is_said_aloud(serve, ask):
    """An answer that ran out of tokens while thinking warns, and keeps the thought."""
    model, _ = serve(Reply(thought="hmm and hmm", finish="length"))
    with pytest.warns(UserWarning, match="max_tokens"):
        answer = ask(model, "2+2?")
    assert answer.content == ""
    assert answer.additional_kwargs["reasoning_content"] == "hmm and hmm"


@pytest.mark.parametrize(
    ("tokens", "said"), [(3, "wrote 3 tokens"), (2, "ended its turn at once"), (1, "at once")]
)
def test_no_answer_is_empty_in_silence(serve, ask, tokens, said):
    """Tokens of which nothing came are told as lost, an end of turn alone as what it is."""
    model, _ = serve(Reply(usage=(21, tokens)))
    with pytest.warns(EmptyAnswerWarning, match=said) as told:
        assert ask(model, "hi").content == ""
    assert len(told) == 1


@pytest.mark.parametrize("given", [{"max_tokens": 1}, {"stop": ["hi"]}])
def test_an_answer_that_was_to_be_empty_is_no_surprise(serve, ask, given):
    """One token is enough to warm a server up, and a stop text may come first."""
    model, dialect = serve(Reply(text="hi there", usage=(21, 1)))
    dialect.engine = "simple"
    if "max_tokens" in given:
        dialect.script = lambda body: Reply(usage=(21, 1))
    assert ask(model, "hi", **given).content == ""


def test_an_answer_that_ran_out_of_tokens_says_so_whatever_the_server_says(serve, ask):
    """The simple engine calls every answer about media whole, and counts two tokens too many."""
    model, _ = serve(Reply(text="half an answ", usage=(21, 10)))
    assert ask(model, "hi", max_tokens=8).response_metadata["finish_reason"] == "length"
    assert ask(model, "hi", max_tokens=10).response_metadata["finish_reason"] == "stop"
    model, _ = serve(Reply(thought="half a thou", usage=(21, 10)))
    with pytest.warns(EmptyAnswerWarning, match="max_tokens"):
        assert ask(model, "hi", max_tokens=8).text == ""


def test_a_wish_about_thinking_that_is_none_is_refused(serve):
    """In a call as in the constructor."""
    model, dialect = serve()
    with pytest.raises(ConfigurationError, match="reasoning") as caught:
        model.invoke("hi", reasoning="extreme")
    assert "high" in caught.value.message
    assert dialect.requests == []


@pytest.mark.parametrize("engine", ["simple", "batched"])
def test_a_stock_batching_server_is_kept_from_mixing_up_its_grammars(serve, engine):
    """Each of its requests carries a bias of nothing, so that no row of a batch is without one."""
    model, dialect = serve(dialect={"engine": engine})
    model.invoke("hi")
    assert dialect.requests[0].get("logit_bias") == ({"0": 0.0} if engine == "batched" else None)


@pytest.mark.parametrize("parser", ["gemma4", "gpt_oss", "mistral", None])
def test_a_budget_that_nothing_enforces_is_told_once(parser: str | None):
    """Other thoughts than those in `<think>` cannot be ended; where nobody knows, it is sent."""
    given = {"thinking_budget": 9, "reasoning": True}
    held = Endpoint(
        "http://127.0.0.1:9/v1", None, f"m-{parser}", managed=True, parsers=Parsers(None, parser)
    )
    with pytest.warns(UserWarning, match=f"`thinking_budget` has no effect on `m-{parser}`"):
        body = body_for(held, [], given)
    assert body["enable_thinking"]
    assert "thinking_token_budget" not in body
    body_for(held, [], given)
    others = Parsers(None, "qwen3"), None
    for other in (
        dataclasses.replace(held, managed=False),
        *(dataclasses.replace(held, parsers=parsers) for parsers in others),
    ):
        assert body_for(other, [], given)["thinking_token_budget"] == 9


def test_earlier_thoughts_stay_in_the_prompt_of_a_model_that_thinks():
    """So that the prefix cache holds over turns; the user's own wish wins."""
    messages = [{"role": "user", "content": "hi"}]
    thinking = Endpoint("http://127.0.0.1:9/v1", None, "m", parsers=Parsers(reasoning="qwen3"))
    plain = Endpoint("http://127.0.0.1:9/v1", None, "m", parsers=Parsers())

    def template(endpoint: Endpoint, **given: Any) -> Any:
        return body_for(endpoint, messages, given).get("chat_template_kwargs")

    assert template(plain) is None
    assert template(thinking) == {"preserve_thinking": True}
    assert template(thinking, reasoning=False) == {
        "preserve_thinking": True,
        "enable_thinking": False,
    }
    chosen = {"preserve_thinking": False}
    assert template(thinking, chat_template_kwargs=chosen) == chosen
