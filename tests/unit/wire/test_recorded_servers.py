"""What servers of other kinds answered, byte by byte, is read as ChatOpenAI reads it.

`scripts/record_dialect.py` records a server that runs; where none of its kind does, the answers are
composed from its documentation. Each file says which.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from dialects import SCENARIOS, City, stream
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ModelMissingError
from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.transport import remote

FILES = sorted((Path(__file__).parents[2] / "golden" / "dialects").glob("*.json"))
KINDS = {file.stem: json.loads(file.read_text()) for file in FILES}
COMPLETIONS = "/v1/chat/completions"


@contextmanager
def replay(answers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the address of a server that gives what was recorded, for each path in its order."""
    left = [dict(entry) for entry in answers]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            entry = next((e for e in left if e["path"] == self.path), None)
            if entry is not None and self.path == COMPLETIONS:
                left.remove(entry)
            if entry is None or entry["status"] == 0:
                self.close_connection = True
                return
            body = entry["body"].encode()
            self.send_response(entry["status"])
            self.send_header("content-type", entry["type"])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()
            remote.forget()


def ask(kind: str, scenario: str) -> Any:
    """Ask a recorded server with our class."""
    with replay(KINDS[kind]["scenarios"][scenario]) as url:
        llm = ChatVllmMlx(model="served-model", base_url=url, max_retries=0, timeout=20)
        return SCENARIOS.get(scenario, stream)(llm)


def ask_as_openai(kind: str, scenario: str) -> AIMessage:
    """Ask it with ChatOpenAI, in the way of what was recorded: ours may stream where it invokes."""
    answers = KINDS[kind]["scenarios"][scenario]
    is_stream = any("event-stream" in e["type"] for e in answers if e["path"] == COMPLETIONS)
    with replay(answers) as url:
        llm = ChatOpenAI(
            model="served-model", base_url=url, api_key="none", max_retries=0, stream_usage=True
        )
        return stream(llm) if is_stream else llm.invoke("hi")


COUNTED_TWICE = {"vllm_mlx"}
"""Its streams tell the usage in two chunks, which OpenAI's client adds up."""


@pytest.mark.parametrize("scenario", ["answer", "stream", "tools"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_read_as_by_openais_client(kind: str, scenario: str):
    """The same text, calls, usage and reason to end."""
    ours, theirs = ask(kind, scenario), ask_as_openai(kind, scenario)
    assert ours.text or ours.tool_calls
    assert ours.text == theirs.text
    called = [(call["name"], call["args"]) for call in ours.tool_calls]
    assert called == [(call["name"], call["args"]) for call in theirs.tool_calls]
    tokens = [(m.usage_metadata or {}).get("total_tokens") for m in (ours, theirs)]
    is_doubled = kind in COUNTED_TWICE and scenario != "answer"
    assert tokens[1] == (2 * tokens[0] if is_doubled else tokens[0])
    reasons = [message.response_metadata.get("finish_reason") for message in (ours, theirs)]
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if "composed" in v["origin"]])
def test_a_call_in_pieces_is_put_together(kind: str):
    """Names without arguments, empty names, whole calls: each kind has its own way."""
    [call] = ask(kind, "tools").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})


UNCONSTRAINED = {"mlx_lm"}
"""They take a schema and do not enforce it."""


@pytest.mark.parametrize(
    "kind",
    [k for k, v in KINDS.items() if "structured" in v["scenarios"] and k not in UNCONSTRAINED],
)
def test_an_object_is_read(kind: str):
    """What each sends for a schema is the object that was asked for."""
    assert isinstance(ask(kind, "structured"), City)


@pytest.mark.parametrize("kind", sorted(UNCONSTRAINED))
def test_text_instead_of_an_object_is_an_error(kind: str):
    """A server without a grammar writes prose, which is told with what it wrote."""
    with pytest.raises(StructuredOutputError, match="does not constrain") as caught:
        ask(kind, "structured")
    assert "city" in (caught.value.llm_output or "")


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if "reasoning" in v["scenarios"]])
def test_reasoning_is_read_under_any_name(kind: str):
    """It is `reasoning` here and `reasoning_content` there."""
    message = ask(kind, "reasoning")
    assert message.text == "Paris."
    [block] = [b for b in message.content_blocks if b["type"] == "reasoning"]
    assert block["reasoning"] == "France. Its capital is Paris."


ANSWER_ANYWAY = {"llama_cpp"}
"""They serve one model and do not look at its name."""


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ANSWER_ANYWAY])
def test_a_model_that_is_not_served_is_told_as_such(kind: str):
    """In the words of each, and as the same error."""
    with pytest.raises(ModelMissingError):
        ask(kind, "unknown model")


def test_each_kind_is_there_and_tells_where_it_comes_from():
    """What runs on the machine of the tests was recorded."""
    recorded = {kind for kind, held in KINDS.items() if held["origin"] == "recorded"}
    composed = {kind for kind, held in KINDS.items() if held["origin"].startswith("composed from")}
    assert recorded >= {"mlx_lm", "llama_cpp", "litellm", "vllm_mlx"}
    assert composed == {"vllm", "lm_studio", "ollama"}
