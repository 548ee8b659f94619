"""What vllm-mlx 0.6.0 says over HTTP, with scripted answers. Stdlib only.

`Dialect.respond` turns a request into a response as the real server would: it is strict and lax in
the same places (unknown fields are ignored, a `stop` that is not a list is a 422, another model's
name a 404, usage comes twice, `response_format` with tools is a 400, failures in a stream are
frames).
What the model says comes from a script: a function from the request's body to a `Reply`.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fakes.reply import Reply, Script, helpful
from fakes.request_schema import are_strings, complaint_about
from fakes.response_format import (
    BrokenError,
    Response,
    arguments_text,
    broken_body,
    deltas_of,
    event_frame,
    finish_of,
    json_response,
    logprob_of,
    schema_refusal,
    stream_choice,
    tokens_of,
    usage_of,
)
from fakes.vocabulary import Vocabulary


class Dialect:
    """A served model.

    Args:
        served_model: The name that requests must give.
        api_key: The bearer key, None for none.
        script: What the model says.
        engine: `simple` or `batched`, as `/health` tells it.
        multimodal: Whether it takes media, as `/health` tells it.

    Attributes:
        requests: The bodies of chat requests, in order.
        headers: Their headers, names in lower case.
        peers: Address and port that they came from.
        vectors: What becomes of the vectors that are sent.
        scores: What becomes of the scores that are sent.
        tells_logprobs: Whether it tells log probabilities, as a mended server does.
        vocabulary: What its model's tokens are; None for a server that ignores `logit_bias`.
        closed: How many streams ended because the client went away.
        status: What `/v1/status` tells of the requests, None for a server without it.
    """

    def __init__(
        self,
        served_model: str = "m",
        api_key: str | None = None,
        script: Script = helpful,
        *,
        engine: str = "batched",
        multimodal: bool = False,
        max_request_tokens: int = 32768,
    ) -> None:
        self.served_model = served_model
        self.api_key = api_key
        self.script = script
        self.engine = engine
        self.multimodal = multimodal
        self.max_request_tokens = max_request_tokens
        self.requests: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.peers: list[tuple[str, int]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.vectors: Callable[[list[dict[str, Any]]], Any] = lambda data: data
        self.scores: Callable[[list[dict[str, Any]]], Any] = lambda results: results
        self.tells_logprobs = True
        self.vocabulary: Vocabulary | None = Vocabulary()
        self.closed = 0
        self.status: Callable[[], dict[str, Any]] | None = dict
        self._lock = threading.Lock()

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        """Return what the server answers."""
        path = path.split("?", 1)[0]
        with self._lock:
            self.paths.append(path)
        if path == "/health":
            return json_response(200, self._health())
        if refusal := self._unauthorized(headers):
            return refusal
        if (method, path) == ("GET", "/v1/models"):
            entry = {"id": self.served_model, "object": "model", "owned_by": "vllm-mlx"}
            return json_response(200, {"object": "list", "data": [entry]})
        if (method, path) == ("GET", "/v1/status"):
            if self.status is None:
                return json_response(404, {"detail": "Not Found"})
            found = {"status": "running", "model": self.served_model, "requests": []}
            return json_response(200, {**found, **self.status()})
        routes = {
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embeddings,
            "/v1/rerank": self._rerank,
            "/v1/messages/count_tokens": self._count,
        }
        if method != "POST" or path not in routes:
            return json_response(404, {"detail": "Not Found"})
        try:
            parsed = json.loads(body)
        except ValueError:
            return schema_refusal(["body"], "JSON decode error")
        if not isinstance(parsed, dict):
            return schema_refusal(["body"], "Input should be a valid dictionary")
        with self._lock:
            if path == "/v1/chat/completions":
                self.requests.append(parsed)
                self.bodies.append(body)
                self.headers.append({k.lower(): v for k, v in headers.items()})
        return routes[path](parsed)

    def _health(self) -> dict[str, Any]:
        return {
            "status": "healthy",
            "model_loaded": True,
            "model_name": self.served_model,
            "model_type": "mllm" if self.multimodal else "llm",
            "engine_type": self.engine,
        }

    def _unauthorized(self, headers: dict[str, str]) -> Response | None:
        if self.api_key is None:
            return None
        given = {k.lower(): v for k, v in headers.items()}.get("authorization")
        if given is None:
            return json_response(401, {"detail": "API key required"})
        if given != f"Bearer {self.api_key}":
            return json_response(401, {"detail": "Invalid API key"})
        return None

    def _missing(self, name: Any) -> Response | None:
        if name == self.served_model:
            return None
        text = f"The model `{name}` does not exist. Available model: `{self.served_model}`"
        return json_response(404, {"detail": text})

    def _chat(self, body: dict[str, Any]) -> Response:
        if complaint := complaint_about(body):
            return schema_refusal(*complaint)
        if missing := self._missing(body["model"]):
            return missing
        if (body.get("max_tokens") or 0) > self.max_request_tokens:
            text = f"max_tokens exceeds server limit ({self.max_request_tokens})"
            return json_response(400, {"detail": text})
        if not body["messages"]:
            return Response(500, b"Internal Server Error", "text/plain")
        form = (body.get("response_format") or {}).get("type", "text")
        if form != "text" and body.get("tools") and body.get("tool_choice") != "none":
            return json_response(400, {"detail": "tools and response_format cannot be combined"})
        reply = self.script(body)
        bias = body.get("logit_bias") or {}
        if reply.likely and any(bias.values()) and self.vocabulary is not None:
            reply = replace(reply, text=self.vocabulary.likeliest(reply.likely, bias))
        if reply.status is not None:
            if isinstance(reply.detail, str) and reply.status == 500:
                return Response(500, reply.detail.encode(), "text/plain")
            return Response(
                reply.status, json.dumps({"detail": reply.detail}).encode(), headers=reply.headers
            )
        if reply.raw is not None:
            return Response(200, iter([reply.raw]), "text/event-stream", reply.headers)
        if not body.get("stream"):
            return self._whole(reply, body)
        return Response(200, self._events(reply, body), "text/event-stream")

    def _whole(self, reply: Reply, body: dict[str, Any]) -> Response:
        if reply.frame is not None:
            return json_response(reply.frame[0], {"detail": reply.frame[1]})
        if reply.break_after is not None:
            return Response(200, broken_body())
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.thought:
            message["reasoning_content"] = reply.thought
        if reply.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": name, "arguments": arguments_text(args)},
                }
                for i, (name, args) in enumerate(reply.calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": finish_of(reply)}
        if self._notes(body):
            choice["logprobs"] = {
                "content": [logprob_of(t, body, reply) for t in tokens_of(reply.text)]
            }
        if reply.gate:
            reply.gate.wait(30)
        time.sleep(reply.pause)
        return json_response(
            200,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": self.served_model,
                "choices": [choice],
                "usage": usage_of(reply),
                "generation_metadata": None,
            },
        )

    def _events(self, reply: Reply, body: dict[str, Any]) -> Iterator[bytes]:
        for _ in range(reply.heartbeats):
            yield b": heartbeat\n\n"
        sent = 0
        try:
            for delta in deltas_of(reply):
                if sent:
                    time.sleep(reply.pause)
                    if reply.gate:
                        reply.gate.wait(30)
                if reply.break_after is not None and sent > reply.break_after:
                    raise BrokenError
                choice = stream_choice(delta)
                if self._notes(body):
                    tokens = tokens_of(delta.get("content", ""))
                    choice["logprobs"] = {"content": [logprob_of(t, body, reply) for t in tokens]}
                yield self._event([choice])
                sent += 1
            if reply.frame is not None:
                code, text = reply.frame
                yield event_frame({"error": {"message": text, "type": "x", "code": code}})
                yield b"data: [DONE]\n\n"
                return
            if reply.endless:
                return
            usage = usage_of(reply)
            last = self._event(
                [stream_choice({}, finish_of(reply))], reply.usage_on_finish and usage
            )
            yield last
            if (body.get("stream_options") or {}).get("include_usage"):
                yield self._event([], usage)
            yield b"data: [DONE]\n\n"
        except GeneratorExit:
            with self._lock:
                self.closed += 1
            raise

    def _event(self, choices: list[dict[str, Any]], usage: Any = None) -> bytes:
        return event_frame(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": self.served_model,
                "choices": choices,
                "usage": usage or None,
                "generation_metadata": None,
            }
        )

    def _notes(self, body: dict[str, Any]) -> bool:
        return self.tells_logprobs and bool(body.get("logprobs"))

    def _embeddings(self, body: dict[str, Any]) -> Response:
        texts = body.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return schema_refusal(["body", "input"], "Input should be a valid string")
        if body.get("model") != self.served_model:
            return json_response(
                400, {"detail": f"embedding model {body.get('model')} is not available"}
            )
        if not texts:
            return json_response(400, {"detail": "Input must not be empty"})
        too_long = next((i for i, text in enumerate(texts) if len(text.split()) > 512), None)
        if too_long is not None:
            text = f"input {too_long} is too long: it has more than 512 tokens"
            detail = {"error": "embedding_input_too_long", "message": text}
            return json_response(400, {"detail": detail})
        data = [
            {"object": "embedding", "index": i, "embedding": vector(text)}
            for i, text in enumerate(texts)
        ]
        data = self.vectors(data)
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return json_response(
            200, {"object": "list", "data": data, "model": self.served_model, "usage": usage}
        )

    def _rerank(self, body: dict[str, Any]) -> Response:
        query, documents = body.get("query"), body.get("documents")
        if not isinstance(query, str) or not are_strings(documents):
            return schema_refusal(["body", "documents"], "Input should be a valid string")
        if body.get("model") != self.served_model:
            text = f"Reranker model '{body.get('model')}' is not available."
            return json_response(400, {"detail": text})
        if not query.strip() or not documents:
            what = "Documents list" if query.strip() else "Query"
            return json_response(400, {"detail": f"{what} must not be empty"})
        for number, document in enumerate(documents):
            if len(document.split()) > 512:
                return json_response(400, {"detail": f"document {number} is too long: 512 tokens"})
        asked = vector(query)
        results = [
            {
                "index": index,
                "relevance_score": sum(a * b for a, b in zip(asked, vector(text), strict=True)),
            }
            for index, text in enumerate(documents)
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        return json_response(200, {"model": self.served_model, "results": self.scores(results)})

    def _count(self, body: dict[str, Any]) -> Response:
        texts = [body.get("system") or ""]
        for message in body.get("messages", []):
            content = message.get("content") or ""
            blocks = [{"text": content}] if isinstance(content, str) else content
            texts.extend(block.get("text") or "" for block in blocks)
        texts.extend(json.dumps(tool) for tool in body.get("tools", []))
        return json_response(200, {"input_tokens": sum(len(str(text).split()) for text in texts)})


def vector(text: str) -> list[float]:
    """Return a vector in which texts with common words are near each other."""
    found = [0.01] * 32
    for word in text.lower().split():
        digest = hashlib.sha256(word.strip(".,?!").encode()).digest()
        found[digest[0] % 32] += 1.0
    length = sum(x * x for x in found) ** 0.5
    return [x / length for x in found]
