"""What a model object is used for beside a plain call."""

import asyncio
import copy
import itertools
import os
import pickle
import subprocess
import sys

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.hub import running_hub, write_model
from fakes.reply import Reply, helpful
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelInvalidRequestError,
    ModelNotFoundError,
)
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    ModelDownloadError,
)
from langchain_car_vllm.wire.errors import ConnectionFailedError, InvalidRequestError

MODEL = "vllm-mlx/qwen3.6-35b-a3b:4bit"


@pytest.fixture
def server():
    """A served model."""
    with Server(Dialect("m", script=lambda body: Reply(text="w w w w w"))) as running:
        yield running


@pytest.fixture
def model(server):
    """A model for it."""
    return ChatVllmMlx(model="m", base_url=server.base_url)


def test_a_used_model_survives_pickle_and_copies(model):
    """No client sticks to the object."""
    model.invoke("hi")
    asyncio.run(model.ainvoke("hi"))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model.model_copy()):
        assert other.invoke("hi").content == "w w w w w"


@pytest.mark.parametrize("seconds", [1e10, 1e300])
def test_a_timeout_of_centuries_is_no_limit(server, seconds):
    """Sockets and locks refuse it with an error of their own."""
    for cls, ask in (
        (ChatVllmMlx, lambda model: model.invoke("hi")),
        (ChatVllmMlx, lambda model: list(model.stream("hi"))),
        (ChatVllmMlx, lambda model: asyncio.run(model.ainvoke("hi"))),
        (VllmMlxEmbeddings, lambda model: model.embed_query("hi")),
    ):
        assert ask(cls(model="m", base_url=server.base_url, timeout=seconds))


def test_a_copy_with_another_model_asks_for_that_one(model, server):
    """`model_copy(update=...)` and a call's `model` are both heeded."""
    with pytest.raises(ModelNotFoundError, match="other"):
        model.model_copy(update={"model": "other"}).invoke("hi")
    with pytest.raises(ModelNotFoundError, match="third"):
        model.invoke("hi", model="third")
    assert [body["model"] for body in server.dialect.requests] == ["other", "third"]


def test_configurable_fields_keep_streaming(model, server):
    """A configured copy streams in parts and sends what was configured."""
    configurable = model.configurable_fields(temperature=ConfigurableField(id="t"))
    config = {"configurable": {"t": 0.25}}
    assert len(list(configurable.stream("hi", config=config))) == 6
    assert server.dialect.requests[0]["temperature"] == 0.25


def test_parameters_reach_the_server_wherever_they_were_set(server):
    """At construction, in `bind`, in the call; the nearest wins."""
    model = ChatVllmMlx(
        model="m",
        base_url=server.base_url,
        temperature=0.1,
        top_p=0.2,
        top_k=3,
        min_p=0.4,
        repetition_penalty=1.5,
        presence_penalty=0.6,
        max_tokens=7,
        reasoning=False,
        model_kwargs={"logit_bias": {"5": -1.0}},
        extra_body={"custom": True},
    )
    model.bind(top_k=9).invoke("hi", temperature=0.9)
    sent = server.dialect.requests[0]
    expected = {
        "temperature": 0.9,
        "top_p": 0.2,
        "top_k": 9,
        "min_p": 0.4,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.6,
        "max_tokens": 7,
        "enable_thinking": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "logit_bias": {"5": -1.0},
        "custom": True,
    }
    assert {name: sent.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("reasoning", "budget", "expected"),
    [
        (None, None, {}),
        (True, 64, {"enable_thinking": True, "thinking_token_budget": 64}),
        (False, 64, {"enable_thinking": False}),
        ("high", None, {"reasoning_effort": "high"}),
    ],
)
def test_reasoning_is_asked_for(server, reasoning, budget, expected):
    """Switched on or off in both places the server reads, or by effort."""
    model = ChatVllmMlx(
        model="m", base_url=server.base_url, reasoning=reasoning, thinking_budget=budget
    )
    model.invoke("hi")
    sent = server.dialect.requests[0]
    names = ("enable_thinking", "thinking_token_budget", "reasoning_effort")
    assert {name: sent[name] for name in names if name in sent} == expected
    switch = sent.get("chat_template_kwargs", {}).get("enable_thinking")
    assert switch == expected.get("enable_thinking")


def test_a_cached_answer_asks_nobody(server):
    """LangChain's cache works, keyed by the parameters."""
    model = ChatVllmMlx(model="m", base_url=server.base_url, cache=InMemoryCache())
    model.invoke("hi")
    model.invoke("hi")
    model.invoke("hi", temperature=0.5)
    assert len(server.dialect.requests) == 2


def test_callbacks_fallbacks_retries_and_the_rate_limiter_work(server):
    """The usual wrappers see one model run for each call."""
    limiter = InMemoryRateLimiter(requests_per_second=1000, check_every_n_seconds=0.001)
    model = ChatVllmMlx(model="m", base_url=server.base_url, rate_limiter=limiter)
    starts = []

    class Count(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, **kwargs):
            starts.append(kwargs["metadata"]["ls_provider"])

    broken = model.model_copy(update={"model": "none"})
    chain = broken.with_retry(stop_after_attempt=1).with_fallbacks([model])
    with get_usage_metadata_callback() as usage:
        chain.invoke("hi", config={"callbacks": [Count()]})
    assert starts == ["vllm_mlx", "vllm_mlx"]
    assert usage.usage_metadata["m"]["input_tokens"] == 21


def test_a_batch_counts_its_tokens_together(model):
    """`generate` sums the usage of all answers."""
    result = model.generate([[HumanMessage("a")], [HumanMessage("b")]])
    assert result.llm_output["token_usage"]["prompt_tokens"] == 42


def test_a_forked_child_gets_clients_of_its_own(model):
    """A connection is not shared between processes."""
    model.invoke("hi")
    child = os.fork()
    if child == 0:
        os._exit(0 if model.invoke("hi").content else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_warm_up_sends_the_prompt_with_another_last_text(server):
    """The same bytes up to the last user message, one token, and the same tools."""
    model = ChatVllmMlx(model="m", base_url=server.base_url, temperature=0.5)
    prompt = [SystemMessage("You are terse."), HumanMessage("hi")]
    tools = [{"title": "f", "description": "d", "type": "object", "properties": {}}]
    model.warm_up()
    assert server.dialect.requests == []
    model.warm_up(prompt, tools)
    asyncio.run(model.awarm_up(prompt[:1]))
    model.bind_tools(tools).invoke(prompt)
    warm, _, real = server.dialect.requests
    assert warm["max_tokens"] == 1
    assert warm["messages"][0] == real["messages"][0]
    assert warm["messages"][1] != real["messages"][1]
    assert warm["tools"] == real["tools"]
    assert warm["temperature"] == real["temperature"]
    with pytest.raises(ConfigurationError, match="a list of tools"):
        model.warm_up(prompt, len)


def test_an_endpoint_of_somebody_elses_is_not_unloaded(model):
    """It is never started and never stopped."""
    with pytest.raises(ConfigurationError, match="somebody else"):
        model.unload()


def test_tokens_are_counted_by_the_server_where_it_runs(model, server):
    """The fake counts words; without a server the count is a rough one."""
    assert model.get_num_tokens("one two three") == 3
    assert "/v1/messages/count_tokens" in server.dialect.paths
    assert ChatVllmMlx(model=MODEL).get_num_tokens("one two three") > 0

    async def on_a_loop() -> int:
        return model.get_num_tokens("one two three")

    before = len(server.dialect.paths)
    assert asyncio.run(on_a_loop()) > 0
    assert len(server.dialect.paths) == before


@pytest.mark.parametrize("blocks", ["half a pair \ud800", [{"type": "image", "url": "no.png"}], []])
def test_counting_needs_no_sendable_message(model, blocks):
    """What a request could not carry is counted roughly."""
    messages = [HumanMessage(blocks)] if blocks else []
    assert model.get_num_tokens_from_messages(messages) >= 0


def test_text_that_cannot_be_written_is_a_typed_error(server):
    """Half a surrogate pair, also where the prompt is measured first."""
    for profile in (None, {"max_input_tokens": 5}):
        model = ChatVllmMlx(model="m", base_url=server.base_url, profile=profile)
        with pytest.raises(ModelInvalidRequestError, match="surrogates"):
            model.invoke("half a pair \ud800")


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke"])
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_sent(server, way):
    """LangChain's own class, with the numbers; the limit is the profile's, which is the user's."""
    model = ChatVllmMlx(model="m", base_url=server.base_url, profile={"max_input_tokens": 10})
    assert model.invoke("nine words " * 4).content
    calls = {
        "invoke": lambda: model.invoke("word " * 11),
        "stream": lambda: list(model.stream("word " * 11)),
        "ainvoke": lambda: asyncio.run(model.ainvoke("word " * 11)),
    }
    with pytest.raises(ContextOverflowError, match="11 tokens, but `max_input_tokens` allows 10"):
        calls[way]()
    assert len(server.dialect.requests) == 1


def test_a_limit_of_the_users_joins_what_is_known_of_the_model(server):
    """So an agent still finds that the model gives structured output."""
    model = ChatVllmMlx(model="m", base_url=server.base_url, profile={"max_input_tokens": 10})
    known = ChatVllmMlx(model="m", base_url=server.base_url).profile
    assert model.profile == {**known, "max_input_tokens": 10}
    assert pickle.loads(pickle.dumps(model)).profile == model.profile


def test_the_window_of_one_model_does_not_bind_another(server):
    """However the other was asked for: its own window counts."""
    model = ChatVllmMlx(model="small", base_url=server.base_url, profile={"max_input_tokens": 10})
    long = "word " * 50
    field = ConfigurableField(id="model")
    configured = model.configurable_fields(model=field)
    assert model.invoke(long, model="m").text
    assert model.model_copy(update={"model": "m"}).invoke(long).text
    assert configured.invoke(long, config={"configurable": {"model": "m"}}).text
    with pytest.raises(ContextOverflowError):
        model.invoke(long)


def test_validate_model_on_init_asks_what_can_be_known(server, monkeypatch, tmp_path):
    """The endpoint's list of models, the files on this machine, or the Hub."""
    url = server.base_url
    assert ChatVllmMlx(model="m", base_url=url, validate_model_on_init=True)
    with pytest.raises(ModelNotFoundError, match="`other`"):
        ChatVllmMlx(model="other", base_url=url, validate_model_on_init=True)
    with pytest.raises(ConnectionFailedError):
        ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1", validate_model_on_init=True)
    root = url.removesuffix("/v1")
    for wrong in (root, f"{url}/chat/completions"):
        hints = []
        for ask in ({"validate_model_on_init": True}, {}):
            with pytest.raises(InvalidRequestError, match="404") as caught:
                ChatVllmMlx(model="m", base_url=wrong, **ask).invoke("hi")
            hints.append(caught.value.hint)
        assert hints == [hints[0]] * 2
        assert url in hints[0]
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(ModelDownloadError, match="no such repository"):
            ChatVllmMlx(model=MODEL, validate_model_on_init=True)
        hub.repositories["mlx-community/Qwen3.6-35B-A3B-4bit"] = write_model(tmp_path / "origin")
        assert ChatVllmMlx(model=MODEL, validate_model_on_init=True)
        monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "0.0001")
        with pytest.raises(InsufficientMemoryError):
            ChatVllmMlx(model=MODEL, validate_model_on_init=True)
    with pytest.raises(ModelDownloadError, match="auto_pull"):
        ChatVllmMlx(model=MODEL, validate_model_on_init=True, auto_pull=False)


def test_the_history_never_changes_by_a_byte(server):
    """Ten turns of an agent resend what was sent before, calls and reasoning included."""
    server.dialect.script = helpful
    model = ChatVllmMlx(model="m", base_url=server.base_url)
    tools = [{"title": "f", "description": "d", "type": "object", "properties": {}}]
    bound = model.bind_tools(tools)
    history = [SystemMessage("Be terse."), HumanMessage("go")]
    for turn in range(10):
        answer = bound.invoke(history)
        history.append(answer)
        if answer.tool_calls:
            history.append({"role": "tool", "content": f"{turn}", "tool_call_id": "call_0"})
        else:
            history.append(HumanMessage(f"and {turn}?"))
    bodies = [body["messages"] for body in server.dialect.requests]
    for earlier, later in itertools.pairwise(bodies):
        assert later[: len(earlier)] == earlier
    assert any("reasoning_content" in message for message in bodies[-1])


_CALLS_DURING_THE_IMPORT = """
import asyncio, importlib.abc, sys, threading
from langchain_car_vllm import ChatVllmMlx

importing, go_on = threading.Event(), threading.Event()

class Gate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "openai":
            importing.set()
            go_on.wait(30)

async def main():
    sys.meta_path.insert(0, Gate())
    model = ChatVllmMlx(model="m", base_url=sys.argv[1])
    first = asyncio.create_task(model.ainvoke("hi"))
    await asyncio.to_thread(importing.wait, 30)
    second = asyncio.create_task(model.ainvoke("hi"))
    await asyncio.wait([second], timeout=0.5)
    go_on.set()
    print((await first).content, "|", (await second).content)

asyncio.run(main())
"""


def test_calls_wait_while_another_imports_the_wire(server):
    """A module that is being imported by one call is nothing to the others before it is whole."""
    command = [sys.executable, "-c", _CALLS_DURING_THE_IMPORT, server.base_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("w w w w w | w w w w w\n", 0), done.stderr
