"""Requests to a running server as any program may send them, without this package's help."""

import http.client
import json
from typing import Any, NamedTuple

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import directory_of
from langchain_car_vllm.server.state import read_state


class Reply(NamedTuple):
    """What came back.

    Attributes:
        status: Of the response, or the `code` of an error inside a stream.
        detail: The server's own sentence, empty where it answered.
        text: The answer.
        connection: What the response says of the connection.
    """

    status: int
    detail: str
    text: str
    connection: str


class RawClient:
    """Talks to the server of a model, each time over a new connection."""

    def __init__(self, llm: ChatVllmMlx) -> None:
        state = read_state(directory_of(llm._spec(engine=llm.engine)).state)
        assert state is not None
        assert state.port is not None
        self.port = state.port
        self.model = str(llm._spec(engine=llm.engine).served_name)
        self.headers = {
            "Authorization": f"Bearer {state.api_key}",
            "Content-Type": "application/json",
        }

    def get(self, path: str) -> Any:
        return json.loads(self._ask("GET", path, None)[1])

    def chat(self, messages: list[dict[str, Any]] | str, **given: Any) -> Reply:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": 8,
            **given,
        }
        status, raw, connection = self._ask(
            "POST", "/v1/chat/completions", json.dumps(body).encode()
        )
        if status != 200 or not given.get("stream"):
            return _whole(status, raw, connection)
        return _streamed(raw, connection)

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, self.headers)
            response = connection.getresponse()
            kept = response.headers.get("connection", "")
            return response.status, response.read().decode(), kept
        finally:
            connection.close()


def _whole(status: int, raw: str, connection: str) -> Reply:
    if status == 200:
        message = json.loads(raw)["choices"][0]["message"]
        return Reply(200, "", message.get("content") or "", connection)
    try:
        detail = json.loads(raw)["detail"]
    except ValueError:
        detail = raw
    return Reply(status, detail if isinstance(detail, str) else json.dumps(detail), "", connection)


def _streamed(raw: str, connection: str) -> Reply:
    text = ""
    for line in raw.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            return Reply(event["error"]["code"], event["error"]["message"], text, connection)
        for choice in event.get("choices", ()):
            text += choice["delta"].get("content") or ""
    return Reply(200, "", text, connection)
