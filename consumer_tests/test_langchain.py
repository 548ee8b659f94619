"""What LangChain offers around a model: caches, histories, fallbacks, retrievers, tracers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from fakes.reply import Reply
from langchain_classic.chains.query_constructor.schema import AttributeInfo
from langchain_classic.retrievers import MultiQueryRetriever, SelfQueryRetriever
from langchain_community.cache import SQLiteCache
from langchain_community.query_constructors.chroma import ChromaTranslator
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tracers import LangChainTracer
from langchain_core.vectorstores import InMemoryVectorStore
from langsmith import Client
from pydantic import BaseModel

from langchain_car_vllm import ChatVllmMlx


class Moon(BaseModel):
    """A moon."""

    name: str


def seats(hall: str) -> str:
    """Tell how many seats a hall has."""
    return "40"


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_a_cache_on_disk(serve: Serve, tmp_path: Path):
    """The second call costs nothing, of a copy as well; another setting misses."""
    model, server = serve(
        lambda body: Reply(text=f"Answer {body.get('temperature')}", thought="Hm."),
        cache=SQLiteCache(str(tmp_path / "cache.sqlite")),
    )
    first = model.invoke("hi")
    again = model.model_copy().invoke("hi")
    assert (again.text, again.additional_kwargs) == (first.text, first.additional_kwargs)
    assert len(server.dialect.requests) == 1
    warm = model.model_copy(update={"temperature": 0.5})
    assert warm.invoke("hi").text == "Answer 0.5"
    assert len(server.dialect.requests) == 2
    assert "sqlite" in str(list(tmp_path.iterdir()))


async def test_a_history_of_messages(serve: Serve):
    """Whole and streamed turns are remembered, and go out as they were."""
    model, server = serve(lambda body: Reply(text=f"Turn {len(body['messages'])}."))
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("user", "{text}")])
    histories: dict[str, InMemoryChatMessageHistory] = {}
    chain = RunnableWithMessageHistory(
        prompt | model,
        lambda session: histories.setdefault(session, InMemoryChatMessageHistory()),
        input_messages_key="text",
        history_messages_key="history",
    )
    config = {"configurable": {"session_id": "1"}}
    assert (await chain.ainvoke({"text": "a"}, config)).text == "Turn 1."
    parts = [part.text async for part in chain.astream({"text": "b"}, config)]
    assert "".join(parts) == "Turn 3."
    assert (await chain.ainvoke({"text": "c"}, config)).text == "Turn 5."
    told = [m["content"] for m in server.dialect.requests[-1]["messages"]]
    assert told == ["a", "Turn 1.", "b", "Turn 3.", "c"]


@pytest.mark.parametrize("status", [429, 500])
def test_fallbacks(serve: Serve, status: int):
    """A model with tools, a structured one and a stream fall back to another of their kind."""
    broken, _ = serve(lambda _: Reply(status=status, detail="no"), max_retries=0)

    def script(body: dict[str, Any]) -> Reply:
        if body.get("tools"):
            return Reply(calls=[("seats", {"hall": "main"})])
        return Reply(text=json.dumps({"name": "Io"}))

    model, _ = serve(script)
    bound = broken.bind_tools([seats]).with_fallbacks([model.bind_tools([seats])])
    assert bound.invoke("go").tool_calls[0]["args"] == {"hall": "main"}
    structured = broken.with_structured_output(Moon).with_fallbacks(
        [model.with_structured_output(Moon)]
    )
    assert structured.invoke("go") == Moon(name="Io")
    plain = broken.with_fallbacks([model])
    assert "".join(chunk.text for chunk in plain.stream("go")) == '{"name": "Io"}'
    whole = broken.with_fallbacks([model]).bind_tools([seats])
    assert whole.invoke("go").tool_calls


def store(*texts: str) -> InMemoryVectorStore:
    vectors = DeterministicFakeEmbedding(size=8)
    return InMemoryVectorStore.from_texts(list(texts), vectors)


def test_a_question_in_several_wordings(serve: Serve):
    """MultiQueryRetriever reads one wording a line."""
    model, server = serve(lambda _: Reply(text="bolts\nnuts\nscrews"))
    base = store("bolts", "nuts", "screws", "bread").as_retriever(search_kwargs={"k": 1})
    found = MultiQueryRetriever.from_llm(base, model).invoke("metal things")
    assert {d.page_content for d in found} == {"bolts", "nuts", "screws"}
    assert len(server.dialect.requests) == 1


class Filtered(InMemoryVectorStore):
    """A store that reads the filters that Chroma reads."""

    def search(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """Search, with a filter where one is given."""
        wanted = kwargs.pop("filter", None)
        if wanted is None:
            return super().search(query, search_type, **kwargs)
        ((field, condition),) = wanted.items()
        ((operator, value),) = condition.items()
        assert operator == "$gt"
        return super().search(
            query, search_type, filter=lambda d: d.metadata[field] > value, **kwargs
        )


def test_a_question_with_a_filter(serve: Serve):
    """SelfQueryRetriever reads the JSON in a code block that a chat model writes."""
    answer = '```json\n{"query": "moon", "filter": "gt(\\"year\\", 1800)"}\n```'
    model, server = serve(lambda _: Reply(text=answer))
    shelf = Filtered(DeterministicFakeEmbedding(size=8))
    shelf.add_documents(
        [
            Document("Phobos", metadata={"year": 1877}),
            Document("Io", metadata={"year": 1610}),
        ]
    )
    retriever = SelfQueryRetriever.from_llm(
        model,
        shelf,
        "Moons",
        [AttributeInfo(name="year", description="found in", type="integer")],
        structured_query_translator=ChromaTranslator(),
    )
    assert [d.page_content for d in retriever.invoke("moons found after 1800")] == ["Phobos"]
    assert "year" in json.dumps(server.dialect.requests[0])


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A loopback endpoint of LangSmith's kind: its address, and all that it was sent."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            received.append(self.rfile.read(int(self.headers.get("content-length", 0))))
            body = json.dumps({"batch_ingest_config": {"use_multipart_endpoint": False}}).encode()
            self.send_response(202 if self.command == "POST" else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_a_tracer_sees_names_and_times_and_no_secret(
    serve: Serve, collector: tuple[str, list[bytes]]
):
    """Provider, model, usage and timings are there; key, headers and server_env are not."""
    address, received = collector
    model, _ = serve(
        lambda _: Reply(text="Io."),
        api_key="sk-secret-key",
        default_headers={"x-team": "secret-header"},
        temperature=0.25,
    )
    client = Client(api_url=address, api_key="none", auto_batch_tracing=False)
    tracer = LangChainTracer(client=client)
    (ChatPromptTemplate.from_template("{text}") | model).invoke(
        {"text": "a moon"}, {"callbacks": [tracer]}
    )
    tracer.wait_for_futures()
    client.flush()
    local = ChatVllmMlx(model="mlx-community/Qwen3-4B-4bit", server_env={"TOKEN": "secret-env"})
    sent = b"".join(received).decode() + json.dumps(local._get_ls_params())
    for told in ('"vllm_mlx"', "ChatVllmMlx", '"timings"', "total_tokens", '"ls_temperature"'):
        assert told in sent, told
    for secret in ("sk-secret-key", "secret-header", "secret-env"):
        assert secret not in sent


def test_an_invocation_is_traced_without_its_environment(collector: tuple[str, list[bytes]]):
    """A call that fails before any request is traced, too, and keeps its secrets."""
    address, received = collector
    model = ChatVllmMlx(
        model="mlx-community/Qwen3-4B-4bit",
        server_env={"TOKEN": "secret-env"},
        auto_install=False,
        auto_pull=False,
        startup_timeout=0.01,
    )
    client = Client(api_url=address, api_key="none", auto_batch_tracing=False)
    tracer = LangChainTracer(client=client)
    with pytest.raises(Exception, match=r"."):
        model.invoke([HumanMessage("hi")], {"callbacks": [tracer]})
    tracer.wait_for_futures()
    client.flush()
    assert b"ChatVllmMlx" in b"".join(received)
    assert b"secret-env" not in b"".join(received)
