"""A program as users write it, which type checkers and the package itself accept."""

from collections.abc import Iterator
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel, SecretStr
from typing_extensions import TypedDict

from langchain_car_vllm import (
    ChatVllmMlx,
    Progress,
    VllmMlxDecisions,
    VllmMlxEmbeddings,
    VllmMlxReranker,
    errors,
    register,
)

URL = "http://127.0.0.1:9/v1"


class Moon(BaseModel):
    """A moon."""

    name: str


class Row(TypedDict):
    """A row of a table."""

    name: str


class MyChat(ChatVllmMlx):
    """A class of the user's own."""

    greeting: str = "hi"


def weather(city: str) -> str:
    """Return the weather in a city."""
    return city


def show(progress: Progress) -> None:
    """Print how far a wait is."""
    print(progress.stage)


def models(folder: Path) -> list[ChatVllmMlx]:
    """Return chat models, set in every way."""
    return [
        ChatVllmMlx("org/repo"),
        ChatVllmMlx(folder),
        ChatVllmMlx(model="org/repo"),
        ChatVllmMlx(model=folder, adapter=folder, draft=True),
        ChatVllmMlx("org/repo", draft="org/draft", adapter="org/adapter"),
        ChatVllmMlx("m", base_url=URL, api_key="key", default_headers={"x-team": "moons"}),
        ChatVllmMlx("m", base_url=URL, api_key=SecretStr("key"), fetch_media=["example.org"]),
        ChatVllmMlx("org/repo", server_args=("--x",), server_env={"A": "b", "C": SecretStr("d")}),
        ChatVllmMlx("org/repo", keep_alive="5m", timeout=3, temperature=1, stop=("a", "b")),
        ChatVllmMlx("org/repo", keep_alive=-1, reasoning="low", thinking_budget=5, stop="a"),
        ChatVllmMlx("org/repo", on_progress=show, tags=["a"], cache=False, name="moons"),
        ChatVllmMlx("org/repo", extra_body={"a": 1}, disable_streaming="tool_calling"),
        MyChat(model="org/repo", greeting="hello"),
    ]


def others(folder: Path) -> tuple[list[VllmMlxEmbeddings], list[VllmMlxReranker], VllmMlxDecisions]:
    """Return models of other kinds."""
    embeddings = [
        VllmMlxEmbeddings("org/repo"),
        VllmMlxEmbeddings(model=folder, batch_size=3),
        VllmMlxEmbeddings("m", base_url=URL, api_key="key", timeout=3),
    ]
    rerankers = [
        VllmMlxReranker("org/repo", top_n=None),
        VllmMlxReranker(model=folder),
        VllmMlxReranker("m", base_url=URL, api_key="key"),
    ]
    return embeddings, rerankers, VllmMlxDecisions(folder, engine="simple", both_orders=False)


def answers(llm: ChatVllmMlx) -> Iterator[str | BaseMessage]:
    """Yield what a model answers, asked in every way."""
    try:
        answer: AIMessage = llm.invoke("hi", keep_alive=0)
        yield answer
    except errors.RateLimitError as error:
        yield error.hint or ""
    for chunk in llm.bind(reasoning=True).stream([("user", "hi")]):
        yield chunk.text
    bound: Runnable[LanguageModelInput, AIMessage] = llm.bind_tools(
        [weather, Moon], tool_choice="any"
    )
    yield bound.invoke("hi")
    for schema in (Moon, Row, {"title": "moon", "type": "object", "properties": {}}):
        yield str(llm.with_structured_output(schema, include_raw=True).invoke("hi"))
    yield llm.model_copy(update={"model": "org/other"}).model


def best(reranker: VllmMlxReranker, embeddings: VllmMlxEmbeddings) -> list[float]:
    """Return the vector of the most relevant document."""
    register()
    found = reranker.compress_documents([Document("moons")], "moons")
    return embeddings.embed_query(found[0].page_content)
