"""Real consumers of the chat model and the embeddings, against the fake server."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypedDict

import pytest
import uvicorn
from blockbuster import blockbuster_ctx
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from fastapi import FastAPI
from fastapi.testclient import TestClient
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, SummarizationMiddleware
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langserve import RemoteRunnable, add_routes
from pydantic import BaseModel

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


class Result(BaseModel):
    """The result."""

    value: int


def reckoner(body: dict[str, Any]) -> Reply:
    """Add, then multiply, then tell; and give JSON where it must."""
    if "response_format" in body:
        return Reply(text=json.dumps({"value": 20}))
    question = max(i for i, m in enumerate(body["messages"]) if m["role"] == "user")
    results = [m["content"] for m in body["messages"][question:] if m["role"] == "tool"]
    if not results:
        return Reply(thought="first add", calls=[("add", {"a": 2, "b": 3})])
    if len(results) == 1:
        return Reply(thought="then multiply", calls=[("multiply", {"a": int(results[0]), "b": 4})])
    return Reply(thought="done", text=f"It is {results[-1]}.")


@pytest.fixture
def served() -> Iterator[Server]:
    """A server that reckons in two steps."""
    with Server(Dialect("m", script=reckoner)) as server:
        yield server


@pytest.fixture
def model(served: Server) -> ChatVllmMlx:
    """A model for it."""
    return ChatVllmMlx(model="m", base_url=served.base_url)


def test_an_agent_with_two_tools_over_three_turns(model, served):
    """Every turn calls both tools, and no request changes what was sent before."""
    agent = create_agent(model, [add, multiply], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    for turn in range(3):
        found = agent.invoke({"messages": [HumanMessage(f"turn {turn}")]}, config)
        assert found["messages"][-1].text == "It is 20."
    bodies = [body["messages"] for body in served.dialect.requests]
    assert len(bodies) == 9
    for earlier, later in zip(bodies, bodies[1:]):  # noqa: B905, RUF007
        assert later[: len(earlier)] == earlier


def test_an_agent_ends_in_an_object_without_a_chosen_strategy(model, served):
    """Tool steps are plain tool calling, and one constrained request follows the last."""
    agent = create_agent(model, [add, multiply], response_format=Result)
    found = agent.invoke({"messages": [HumanMessage("reckon")]})
    assert found["structured_response"] == Result(value=20)
    constrained = [body for body in served.dialect.requests if "response_format" in body]
    assert len(constrained) == 1
    assert len(served.dialect.requests) == 4
    assert not any("tools" in body for body in constrained)


async def test_an_agent_streams_its_messages(model):
    """Tokens, reasoning and calls arrive while it works."""
    agent = create_agent(model, [add, multiply])
    seen: list[Any] = []
    async for message, _ in agent.astream(
        {"messages": [HumanMessage("reckon")]}, stream_mode="messages"
    ):
        seen.append(message)
    assert any(m.additional_kwargs.get("reasoning_content") == "first " for m in seen)
    assert any(isinstance(m, ToolMessage) and m.content == "20" for m in seen)
    assert "".join(m.text for m in seen if isinstance(m, AIMessage)) == "It is 20."
    # Who listens to the messages gets the usage and the reason to finish too, once for each step.
    assert [m.usage_metadata["input_tokens"] for m in seen if getattr(m, "usage_metadata", 0)] == [
        21,
        21,
        21,
    ]


def test_a_graph_never_blocks_the_event_loop(model):
    """The first call too, which imports the SDK and builds the client."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.bind_tools([add, multiply]).ainvoke(state["messages"])]}

    async def tell(state: MessagesState) -> dict[str, Any]:
        parts = [chunk async for chunk in model.astream([HumanMessage("go")], max_tokens=5)]
        return {"messages": [AIMessage(str(len(parts)))]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_node("tell", tell)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "tell")
    graph.add_edge("tell", END)
    compiled = graph.compile()

    async def run() -> Any:
        with blockbuster_ctx("langchain_car_vllm"):
            return await compiled.ainvoke({"messages": [HumanMessage("go")]})

    assert len(asyncio.run(run())["messages"]) == 3


FIRST_CALLS = {
    "forced": "model.bind_tools([Value, Other], tool_choice='any').ainvoke('go')",
    "image": "model.ainvoke([HumanMessage([{'type': 'image', 'url': Path('picture.png')}])])",
    "vectors": "embeddings.aembed_query('go')",
}


@pytest.mark.parametrize("kind", FIRST_CALLS)
def test_the_first_call_of_a_process_never_blocks_the_event_loop(kind, tmp_path):
    """Whatever it needs to import, read or build is done elsewhere."""
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    (tmp_path / "picture.png").write_bytes(picture)
    # Types that blockbuster has changed can end Python 3.11 with a fault of memory at its exit.
    code = f"""
import asyncio
import os
from pathlib import Path
from blockbuster import blockbuster_ctx
from langchain_core.messages import HumanMessage
from pydantic import BaseModel
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings

class Value(BaseModel):
    "A value."
    value: int

class Other(BaseModel):
    "Another value."
    other: int

async def main():
    with blockbuster_ctx("langchain_car_vllm"):
        await {FIRST_CALLS[kind]}

model, embeddings = ChatVllmMlx(model="m"), VllmMlxEmbeddings(model="m")
asyncio.run(main())
os._exit(0)
"""
    with Server(Dialect("m", multimodal=True)) as server:
        environment = {**os.environ, "CAR_VLLM_MLX_BASE_URL": server.base_url}
        subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=50, cwd=tmp_path, env=environment
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("place", ["configurable", "config", "kwargs"])
def test_a_client_of_langserve_sets_what_is_exposed_and_nothing_else(place: str):
    """Wherever in a request another address, key, header or model stands, none is taken."""
    evil = {
        "base_url": "http://127.0.0.1:9/v1",
        "api_key": "theirs",
        "model": "/etc",
        "extra_headers": {"x-theirs": "1"},
        "default_headers": {"x-theirs": "1"},
        "extra_body": {"theirs": 1},
        "server_args": ["--trust-remote-code"],
        "fetch_media": True,
        "max_tokens": 9,
    }
    config: dict[str, Any] = {"configurable": {"temperature": 0.25}}
    body: dict[str, Any] = {"input": "go", "config": config}
    target = {"configurable": config["configurable"], "config": config, "kwargs": {}}[place]
    target.update(evil)
    if place == "kwargs":
        body["kwargs"] = target
    with Server(Dialect("m", script=lambda _: Reply(text="yes"), api_key="ours")) as server:
        model = ChatVllmMlx(model="m", base_url=server.base_url, api_key="ours", max_tokens=5)
        exposed = model.configurable_fields(temperature=ConfigurableField(id="temperature"))
        app = FastAPI()
        add_routes(app, exposed, path="/chat", config_keys=["configurable"])
        answer = TestClient(app).post("/chat/invoke", json=body)
        sent = server.dialect.requests
    assert (answer.status_code, len(sent)) == (200, 1), answer.text
    for request in sent:
        assert (request["model"], request["max_tokens"]) == ("m", 5)
        assert request["temperature"] == 0.25
        assert "theirs" not in json.dumps(request)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_langserve_routes_work_through_a_remote_runnable(model):
    """invoke, batch and stream, of the model, a chain and a configurable one."""
    app = FastAPI()
    add_routes(app, model, path="/model")
    prompt = ChatPromptTemplate.from_messages([("human", "{text}")])
    add_routes(app, prompt | model, path="/chain")
    configurable = model.configurable_fields(temperature=ConfigurableField(id="temperature"))
    add_routes(app, configurable, path="/configurable", config_keys=["configurable"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    ready = threading.Event()
    started = server.startup

    async def startup(sockets: Any = None) -> None:
        await started(sockets)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(20)
    root = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        remote = RemoteRunnable(f"{root}/model")
        answer = remote.invoke("go")
        assert answer.tool_calls[0]["name"] == "add"
        assert answer.additional_kwargs["reasoning_content"] == "first add"
        assert answer.usage_metadata["input_tokens"] == 21
        assert len(remote.batch(["a", "b"])) == 2
        whole = None
        for chunk in RemoteRunnable(f"{root}/chain").stream({"text": "go"}):
            whole = chunk if whole is None else whole + chunk
        assert whole.tool_calls[0]["args"] == {"a": 2, "b": 3}
        config = {"configurable": {"temperature": 0.25}}
        assert RemoteRunnable(f"{root}/configurable").invoke("go", config=config).tool_calls
    finally:
        server.should_exit = True
        thread.join(10)


def test_a_conversation_is_summarised_where_it_grows_too_long(served):
    """The middleware reads the profile's window and counts tokens with the model's provider."""
    served.dialect.script = lambda body: Reply(text="A short summary.")
    model = ChatVllmMlx(model="m", base_url=served.base_url, profile={"max_input_tokens": 4000})
    middleware = SummarizationMiddleware(model, trigger=("fraction", 0.5), keep=("messages", 2))
    agent = create_agent(model, [], middleware=[middleware])
    history = [HumanMessage(f"{n} " + "word " * 300) for n in range(10)]
    found = agent.invoke({"messages": history})
    assert len(found["messages"]) < 10
    assert "A short summary." in found["messages"][0].text


@pytest.mark.parametrize(("status", "requests"), [(500, 2), (504, 2), (400, 1), (422, 1)])
def test_an_agents_retries_repeat_what_can_succeed(model, served, status, requests):
    """The middleware asks the error itself."""
    replies = [Reply(status=status, detail="no"), Reply(text="It is 20.")]
    served.dialect.script = lambda body: replies.pop(0)
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False, on_failure="error")
    agent = create_agent(model, [], middleware=[retry])
    with suppress(ModelInvalidRequestError):
        found = agent.invoke({"messages": [HumanMessage("go")]})
        assert found["messages"][-1].text == "It is 20."
    assert len(served.dialect.requests) == requests


def test_an_overflow_is_caught_and_summarised_away(served):
    """Nothing tells the middleware the window; the typed error before the request does."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(text="A short summary.")

    served.dialect.script = script
    narrow = ChatVllmMlx(model="m", base_url=served.base_url, profile={"max_input_tokens": 700})
    middleware = SummarizationMiddleware(
        narrow,
        trigger=("messages", 4),
        keep=("messages", 1),
        token_counter=lambda messages: sum(len(m.text.split()) for m in messages),
        trim_tokens_to_summarize=None,
    )
    agent = create_agent(narrow, [], middleware=[middleware])
    history = [HumanMessage(f"{n} " + "word " * 200) for n in range(6)]
    found = agent.invoke({"messages": history})
    assert "A short summary." in found["messages"][0].text
    sizes = [len(str(body["messages"]).split()) for body in served.dialect.requests]
    assert len(sizes) == 2
    assert max(sizes) < 700


class Question(TypedDict):
    context: str
    question: str


def test_retrieval_finds_the_text_and_the_model_gets_it():
    """An in-memory vector store with our embeddings in front of the model."""
    with (
        Server(Dialect("e")) as vectors,
        Server(Dialect("m", script=lambda body: Reply(text="Phobos"))) as chat,
    ):
        embeddings = VllmMlxEmbeddings(model="e", base_url=vectors.base_url)
        store = InMemoryVectorStore.from_texts(
            ["Mars has the moon Phobos.", "Bread is made of flour.", "Trains run on rails."],
            embeddings,
        )
        prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
        chain = (
            {
                "context": store.as_retriever(search_kwargs={"k": 1})
                | (lambda documents: documents[0].page_content),
                "question": RunnablePassthrough(),
            }
            | prompt
            | ChatVllmMlx(model="m", base_url=chat.base_url)
        )
        assert chain.invoke("Which moon has Mars?").text == "Phobos"
        assert "Phobos" in chat.dialect.requests[0]["messages"][0]["content"]
