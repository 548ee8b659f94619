"""What vllm-mlx 0.6.0 says over HTTP, with scripted answers. Stdlib only.

`Dialect.respond` turns a request into a response as the real server would: it is strict and lax in
the same places (unknown fields are ignored, a `stop` that is not a list is a 422, another model's
name a 404, usage comes twice, `response_format` with tools is a 400, failures in a stream are
frames).
What the model says comes from a script: a function from the request's body to a `Reply`.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from fakes.vocabulary import Vocabulary

TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass
class Reply:
    """What the model says, and how the server fails at it.

    Attributes:
        text: The answer.
        thought: The reasoning before it.
        calls: Tool calls, as name and arguments.
        finish: The reason to finish; by default `stop`, or `tool_calls` where there are calls.
        pieces: How the text is cut in a stream; by default into words.
        usage: Prompt and completion tokens.
        cached: Prompt tokens from the cache, where the server would tell.
        status: An HTTP status to answer instead, with `detail`.
        detail: What the failure says.
        frame: An error frame (code, message) after the events, as a failing stream sends it.
        break_after: Close the connection after so many events.
        endless: Leave out the finish reason and everything after it.
        pause: Seconds before each event after the first.
        gate: Wait for this before each event after the first.
        heartbeats: Comments before the first event.
        raw: Bytes to send as they are.
        one_index: Start every call at index 0, as some parsers do.
        call_in_parts: Send a call's arguments in pieces.
        likely: Log probabilities of the likeliest tokens, told of every token that is said.
        usage_on_finish: Whether the finish chunk carries usage as well.
    """

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finish: str | None = None
    pieces: list[str] | None = None
    usage: tuple[int, int] = (21, 3)
    cached: int | None = None
    status: int | None = None
    detail: Any = None
    frame: tuple[int, str] | None = None
    break_after: int | None = None
    endless: bool = False
    pause: float = 0.0
    gate: threading.Event | None = None
    heartbeats: int = 0
    raw: bytes | None = None
    one_index: bool = False
    call_in_parts: bool = True
    usage_on_finish: bool = True
    likely: dict[str, float] | None = None
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[dict[str, Any]], Reply]


@dataclass
class Response:
    """What goes back: a body, or parts of one that are sent as they come."""

    status: int
    body: bytes | Iterator[bytes]
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class BrokenError(Exception):
    """The connection ends here, without an end."""


def helpful(body: dict[str, Any]) -> Reply:
    """Answer like a capable model: calls a tool where it may, JSON where it must, else text."""
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema = form["json_schema"]["schema"]
        return Reply(text=json.dumps(example(schema, schema), ensure_ascii=False))
    if form.get("type") == "json_object":
        return Reply(text=json.dumps({"setup": "Why?", "punchline": "Because."}))
    last = body["messages"][-1]
    asked = re.search(r"Answer with one of (.+) and nothing else", str(last.get("content")))
    if asked and body.get("logprobs"):
        keys = asked[1].split(", ")
        return Reply(text=keys[0], likely={key: -0.5 - n for n, key in enumerate(keys)})
    tools = body.get("tools")
    if tools and body.get("tool_choice") != "none" and last["role"] != "tool":
        function = _chosen(body)["function"]
        schema = function.get("parameters") or {}
        return Reply(thought="a tool", calls=[(function["name"], example(schema, schema))])
    return Reply(text="Hello there, my friend", thought=_thought(body))


def _thought(body: dict[str, Any]) -> str:
    switch = (body.get("chat_template_kwargs") or {}).get("enable_thinking")
    return "" if switch is False else "let me think"


def _chosen(body: dict[str, Any]) -> dict[str, Any]:
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        return next(tool for tool in body["tools"] if tool["function"]["name"] == name)
    return body["tools"][0]


def example(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Return a value that fits a JSON schema."""
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return example(found, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            options = [o for o in schema[word] if o.get("type") != "null"]
            return example(options[0], root)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        needed = schema.get("required", list(schema.get("properties", {})))
        properties = schema.get("properties", {})
        return {name: example(properties.get(name, {}), root) for name in needed}
    if kind == "array" and schema.get("prefixItems"):
        return [example(part, root) for part in schema["prefixItems"]]
    if kind == "array":
        return [example(schema.get("items", {}), root)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", 3)
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _text(schema)


def _text(schema: dict[str, Any]) -> str:
    forms = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "uuid": "0" * 32}
    if found := forms.get(schema.get("format", "")):
        return found
    return "你好啊こんにちは"


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
            return _json(200, self._health())
        if refusal := self._unauthorized(headers):
            return refusal
        if (method, path) == ("GET", "/v1/models"):
            entry = {"id": self.served_model, "object": "model", "owned_by": "vllm-mlx"}
            return _json(200, {"object": "list", "data": [entry]})
        if (method, path) == ("GET", "/v1/status"):
            if self.status is None:
                return _json(404, {"detail": "Not Found"})
            found = {"status": "running", "model": self.served_model, "requests": []}
            return _json(200, {**found, **self.status()})
        routes = {
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embeddings,
            "/v1/rerank": self._rerank,
            "/v1/messages/count_tokens": self._count,
        }
        if method != "POST" or path not in routes:
            return _json(404, {"detail": "Not Found"})
        try:
            parsed = json.loads(body)
        except ValueError:
            return _invalid(["body"], "JSON decode error")
        if not isinstance(parsed, dict):
            return _invalid(["body"], "Input should be a valid dictionary")
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
            return _json(401, {"detail": "API key required"})
        if given != f"Bearer {self.api_key}":
            return _json(401, {"detail": "Invalid API key"})
        return None

    def _missing(self, name: Any) -> Response | None:
        if name == self.served_model:
            return None
        text = f"The model `{name}` does not exist. Available model: `{self.served_model}`"
        return _json(404, {"detail": text})

    def _chat(self, body: dict[str, Any]) -> Response:
        if complaint := complaint_about(body):
            return _invalid(*complaint)
        if missing := self._missing(body["model"]):
            return missing
        if (body.get("max_tokens") or 0) > self.max_request_tokens:
            text = f"max_tokens exceeds server limit ({self.max_request_tokens})"
            return _json(400, {"detail": text})
        if not body["messages"]:
            return Response(500, b"Internal Server Error", "text/plain")
        form = (body.get("response_format") or {}).get("type", "text")
        if form != "text" and body.get("tools") and body.get("tool_choice") != "none":
            return _json(400, {"detail": "tools and response_format cannot be combined"})
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
            return _json(reply.frame[0], {"detail": reply.frame[1]})
        if reply.break_after is not None:
            return Response(200, _broken())
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.thought:
            message["reasoning_content"] = reply.thought
        if reply.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": name, "arguments": _dumped(args)},
                }
                for i, (name, args) in enumerate(reply.calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": _finish(reply)}
        if self._notes(body):
            choice["logprobs"] = {
                "content": [_logprob(t, body, reply) for t in _tokens(reply.text)]
            }
        if reply.gate:
            reply.gate.wait(30)
        time.sleep(reply.pause)
        return _json(
            200,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": self.served_model,
                "choices": [choice],
                "usage": _usage(reply),
                "generation_metadata": None,
            },
        )

    def _events(self, reply: Reply, body: dict[str, Any]) -> Iterator[bytes]:
        for _ in range(reply.heartbeats):
            yield b": heartbeat\n\n"
        sent = 0
        try:
            for delta in _deltas(reply):
                if sent:
                    time.sleep(reply.pause)
                    if reply.gate:
                        reply.gate.wait(30)
                if reply.break_after is not None and sent > reply.break_after:
                    raise BrokenError
                choice = _choice(delta)
                if self._notes(body):
                    tokens = _tokens(delta.get("content", ""))
                    choice["logprobs"] = {"content": [_logprob(t, body, reply) for t in tokens]}
                yield self._event([choice])
                sent += 1
            if reply.frame is not None:
                code, text = reply.frame
                yield _frame({"error": {"message": text, "type": "x", "code": code}})
                yield b"data: [DONE]\n\n"
                return
            if reply.endless:
                return
            usage = _usage(reply)
            last = self._event([_choice({}, _finish(reply))], reply.usage_on_finish and usage)
            yield last
            if (body.get("stream_options") or {}).get("include_usage"):
                yield self._event([], usage)
            yield b"data: [DONE]\n\n"
        except GeneratorExit:
            with self._lock:
                self.closed += 1
            raise

    def _event(self, choices: list[dict[str, Any]], usage: Any = None) -> bytes:
        return _frame(
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
            return _invalid(["body", "input"], "Input should be a valid string")
        if body.get("model") != self.served_model:
            return _json(400, {"detail": f"embedding model {body.get('model')} is not available"})
        if not texts:
            return _json(400, {"detail": "Input must not be empty"})
        too_long = next((i for i, text in enumerate(texts) if len(text.split()) > 512), None)
        if too_long is not None:
            text = f"input {too_long} is too long: it has more than 512 tokens"
            detail = {"error": "embedding_input_too_long", "message": text}
            return _json(400, {"detail": detail})
        data = [
            {"object": "embedding", "index": i, "embedding": vector(text)}
            for i, text in enumerate(texts)
        ]
        data = self.vectors(data)
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return _json(
            200, {"object": "list", "data": data, "model": self.served_model, "usage": usage}
        )

    def _rerank(self, body: dict[str, Any]) -> Response:
        query, documents = body.get("query"), body.get("documents")
        if not isinstance(query, str) or not _strings(documents):
            return _invalid(["body", "documents"], "Input should be a valid string")
        if body.get("model") != self.served_model:
            text = f"Reranker model '{body.get('model')}' is not available."
            return _json(400, {"detail": text})
        if not query.strip() or not documents:
            what = "Documents list" if query.strip() else "Query"
            return _json(400, {"detail": f"{what} must not be empty"})
        for number, document in enumerate(documents):
            if len(document.split()) > 512:
                return _json(400, {"detail": f"document {number} is too long: 512 tokens"})
        asked = vector(query)
        results = [
            {
                "index": index,
                "relevance_score": sum(a * b for a, b in zip(asked, vector(text), strict=True)),
            }
            for index, text in enumerate(documents)
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        return _json(200, {"model": self.served_model, "results": self.scores(results)})

    def _count(self, body: dict[str, Any]) -> Response:
        texts = [body.get("system") or ""]
        for message in body.get("messages", []):
            content = message.get("content") or ""
            blocks = [{"text": content}] if isinstance(content, str) else content
            texts.extend(block.get("text") or "" for block in blocks)
        texts.extend(json.dumps(tool) for tool in body.get("tools", []))
        return _json(200, {"input_tokens": sum(len(str(text).split()) for text in texts)})


def vector(text: str) -> list[float]:
    """Return a vector in which texts with common words are near each other."""
    found = [0.01] * 32
    for word in text.lower().split():
        digest = hashlib.sha256(word.strip(".,?!").encode()).digest()
        found[digest[0] % 32] += 1.0
    length = sum(x * x for x in found) ** 0.5
    return [x / length for x in found]


def complaint_about(body: dict[str, Any]) -> tuple[list[Any], str] | None:
    """Return where and why the request schema refuses a body, None where it does not."""
    if not isinstance(body.get("model"), str):
        return ["body", "model"], "Input should be a valid string"
    messages = body.get("messages")
    if not isinstance(messages, list):
        return ["body", "messages"], "Input should be a valid list"
    for place, message in enumerate(messages):
        if complaint := _message_complaint(message):
            return ["body", "messages", place, complaint[0]], complaint[1]
    if (most := body.get("max_tokens")) is not None and not (type(most) is int and most > 0):
        return ["body", "max_tokens"], "Input should be greater than 0"
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"):
        if body.get(name) is not None and not isinstance(body[name], int | float):
            return ["body", name], "Input should be a valid number"
    stop = body.get("stop")
    if stop is not None and not _strings(stop):
        return ["body", "stop"], "Input should be a valid list"
    for place, tool in enumerate(body.get("tools") or []):
        name = (tool.get("function") or {}).get("name")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            text = "Value error, function.name must match ^[A-Za-z0-9_-]{1,64}$"
            return ["body", "tools", place], text
    budget = body.get("thinking_token_budget")
    if budget is not None and not (type(budget) is int and budget > 0):
        return ["body", "thinking_token_budget"], "Input should be greater than 0"
    return None


def _message_complaint(message: Any) -> tuple[str, str] | None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return "role", "Field required"
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            return "content", "Input should be a valid string"
        if not all(isinstance(part.get("type"), str) for part in content):
            return "content", "Field required"
    for name in ("reasoning_content", "tool_call_id"):
        if message.get(name) is not None and not isinstance(message[name], str):
            return name, "Input should be a valid string"
    calls = message.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    ):
        return "tool_calls", "Input should be a valid list"
    return None


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _deltas(reply: Reply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant"}
    for piece in re.findall(r"\S+\s*", reply.thought):
        yield {"reasoning_content": piece}
    pieces = reply.pieces
    if pieces is None:
        pieces = re.findall(r"\s*\S+\s*", reply.text)
    for piece in pieces:
        yield {"content": piece}
    for place, (name, args) in enumerate(reply.calls):
        index = 0 if reply.one_index else place
        text = _dumped(args)
        head = {"index": index, "id": f"call_{place}", "type": "function"}
        if not reply.call_in_parts:
            yield {"tool_calls": [{**head, "function": {"name": name, "arguments": text}}]}
            continue
        yield {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(text), 5):
            part = {"arguments": text[start : start + 5]}
            yield {"tool_calls": [{"index": index, "function": part}]}


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*", text)


def _logprob(token: str, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    most = body.get("top_logprobs") or 0
    likely = reply.likely or {token + "!" * n: -0.5 - n for n in range(most)}
    others = [entry(text, value) for text, value in [*likely.items()][:most]]
    return {**entry(token, likely.get(token, -0.5)), "top_logprobs": others}


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _finish(reply: Reply) -> str:
    return reply.finish or ("tool_calls" if reply.calls else "stop")


def _usage(reply: Reply) -> dict[str, Any]:
    prompt, completion = reply.usage
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if reply.cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": reply.cached}
    return usage


def _broken() -> Iterator[bytes]:
    yield b'{"id": "chat'
    raise BrokenError


def _dumped(args: dict[str, Any]) -> str:
    return json.dumps(args, ensure_ascii=False)


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def _json(status: int, value: Any) -> Response:
    return Response(status, json.dumps(value, ensure_ascii=False).encode())


def _invalid(place: list[Any], message: str) -> Response:
    return _json(422, {"detail": [{"type": "value_error", "loc": place, "msg": message}]})


class _Http(ThreadingHTTPServer):
    request_queue_size = 512


class Server:
    """A dialect behind a socket on loopback, in a thread of this process.

    Args:
        dialect: What is said.

    Attributes:
        base_url: The root of the OpenAI API.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._http = _Http(("127.0.0.1", 0), handler_for(dialect))
        self._http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


def handler_for(dialect: Dialect) -> type[BaseHTTPRequestHandler]:
    """Return a request handler that speaks `dialect`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            if self.command == "POST":
                dialect.peers.append(self.client_address)
            response = dialect.respond(self.command, self.path, dict(self.headers), body)
            self.send_response(response.status)
            self.send_header("content-type", response.content_type)
            for name, value in response.headers.items():
                self.send_header(name, value)
            # As uvicorn does after a failure: without a word in the headers.
            self.close_connection = self.close_connection or response.status >= 500
            if isinstance(response.body, bytes):
                self.send_header("content-length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)
                return
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self._send_parts(response.body)

        do_GET = do_POST = do_DELETE = _handle

        def _send_parts(self, parts: Iterator[bytes]) -> None:
            try:
                for part in parts:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")
            except (BrokenError, ConnectionError):
                self.close_connection = True
                close = getattr(parts, "close", None)
                if close is not None:
                    close()

        def log_message(self, *_: object) -> None:
            """Say nothing: tests read the dialect's records."""

    return Handler
