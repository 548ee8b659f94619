"""Questions that are asked while a server reads a long document."""

from concurrent.futures import ThreadPoolExecutor

from langchain_core.messages import BaseMessage
from raw_client import RawClient

from langchain_car_vllm import ChatVllmMlx


def words(count: int) -> str:
    """Return a text of so many words, which has some times as many tokens."""
    return " ".join(f"word{n}" for n in range(count))


def answered_first(model: ChatVllmMlx, document: str, *questions: str | list[BaseMessage]) -> int:
    """Return how many questions were answered before the document was.

    The server is started where it does not run.

    Args:
        model: Whose server is asked.
        document: What is being read when the questions come.
        questions: Asked at the same time.
    """
    model.invoke("one")
    server, done = RawClient(model), []

    def ask(what: str | list[BaseMessage]) -> None:
        assert model.invoke(what).usage_metadata
        done.append(what)

    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, document)]
        while not any(each["phase"] == "prefill" for each in server.get("/v1/status")["requests"]):
            assert not done, "the document was read too fast"
        asked += [pool.submit(ask, question) for question in questions]
        for each in asked:
            each.result()
    return done.index(document)
