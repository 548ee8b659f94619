"""A `vllm-mlx` that answers at once with the same canned answer, in OpenAI's and Ollama's form.

    python -m benchmarks.replay serve MODEL --port PORT [--served-model-name NAME] [--api-key KEY]

It speaks enough of the server for a supervisor to find it ready, so that the client under test is
used as users use it. Every event of a stream is a write of its own, as where a model generates. It
must not be what is measured: all bytes are made beforehand, and it runs in its own process.
"""

import argparse
import asyncio
import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

_CONFIG = {
    "model_type": "llama",
    "max_position_embeddings": 65536,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""As of a real model: where it tells what a conversation takes, requests look after memory."""
TOKENS = 500
PROMPT_TOKENS = 5
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_NDJSON = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(body: Any, status: str = "200 OK") -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


class Answers:
    """The bytes of every answer.

    Args:
        name: The served model's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": TOKENS,
            "total_tokens": PROMPT_TOKENS + TOKENS,
        }
        done = b"data: [DONE]\n\n"
        ends = [self._event({}, "stop"), self._event(None, usage=usage), done]
        self._begin = [_SSE, _chunk(self._event({"role": "assistant"}))]
        self._token = _chunk(self._event({"content": "tok "}))
        self._end = [*map(_chunk, ends), b"0\r\n\r\n"]
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.whole = _whole(
            {**self._envelope("chat.completion"), "choices": [choice], "usage": usage}
        )
        self._line_of_token = _chunk(self._line("tok ", is_last=False))
        self._last_line = [_chunk(self._line("", is_last=True)), b"0\r\n\r\n"]
        self.ollama_whole = [_NDJSON, _chunk(self._line("hello", is_last=True)), b"0\r\n\r\n"]
        self.health = _whole(
            {
                "status": "healthy",
                "model_loaded": True,
                "model_name": name,
                "model_type": "llm",
                "engine_type": "batched",
            }
        )
        self.models = _whole({"object": "list", "data": [{"id": name, "object": "model"}]})

    def stream(self, tokens: int) -> list[bytes]:
        """Return the events of an answer of so many tokens."""
        return [*self._begin, *[self._token] * tokens, *self._end]

    def ollama_stream(self, tokens: int) -> list[bytes]:
        """Return the lines of an answer of so many tokens."""
        return [_NDJSON, *[self._line_of_token] * tokens, *self._last_line]

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": self._name}

    def _event(self, delta: Any, finish: str | None = None, usage: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        event = self._envelope("chat.completion.chunk")
        event |= {"choices": [] if delta is None else [choice], "usage": usage}
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    def _line(self, text: str, *, is_last: bool) -> bytes:
        line: dict[str, Any] = {
            "model": self._name,
            "created_at": "2026-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": text},
            "done": is_last,
        }
        if is_last:
            line |= {"done_reason": "stop", "total_duration": 1, "load_duration": 1}
            line |= {"prompt_eval_count": PROMPT_TOKENS, "prompt_eval_duration": 1}
            line |= {"eval_count": TOKENS, "eval_duration": 1}
        return json.dumps(line).encode() + b"\n"


class Replay:
    """Answers the requests of all connections.

    Args:
        name: The served model's name.
        key: The bearer key that OpenAI's form wants, None for none.
    """

    def __init__(self, name: str, key: str | None) -> None:
        self._answers = Answers(name)
        self._key = f"bearer {key}".lower().encode() if key else None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = _header(head, b"content-length")
                body = await reader.readexactly(int(length)) if length else b""
                for piece in self._pieces(head, body):
                    writer.write(piece)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _pieces(self, head: bytes, body: bytes) -> list[bytes]:
        path = head.split(b" ", 2)[1]
        answers = self._answers
        if path == b"/health":
            return [answers.health]
        if path == b"/api/chat":
            return self._ollama(json.loads(body))
        if self._key and _header(head, b"authorization") != self._key:
            return [_whole({"detail": "Invalid API key"}, "401 Unauthorized")]
        if path == b"/v1/models":
            return [answers.models]
        if path == b"/v1/chat/completions":
            asked = json.loads(body)
            tokens = asked.get("max_tokens") or TOKENS
            return answers.stream(tokens) if asked.get("stream") else [answers.whole]
        return [_whole({"detail": "Not Found"}, "404 Not Found")]

    def _ollama(self, asked: dict[str, Any]) -> list[bytes]:
        tokens = (asked.get("options") or {}).get("num_predict") or TOKENS
        streams = asked.get("stream", True)
        return self._answers.ollama_stream(tokens) if streams else self._answers.ollama_whole


def _header(head: bytes, name: bytes) -> bytes | None:
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.split(b"\r\n", 1)[0].strip() if found else None


def install(folder: Path) -> tuple[Path, Path]:
    """Make `folder` an installation whose `vllm-mlx` is this server.

    Returns:
        The binary, and a directory that looks like a model.
    """
    binary = folder / "env" / "bin" / "vllm-mlx"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!{sys.executable}\n{Path(__file__).read_text(encoding='utf-8')}")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    metadata = folder / "env" / site / "vllm_mlx-0.6.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm-mlx\nVersion: 0.6.0\n")
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    (model / "config.json").write_text(json.dumps(_CONFIG))
    (model / "tokenizer.json").write_text("{}")
    head = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
    weights = len(head).to_bytes(8, "little") + head + bytes(64)
    (model / "model.safetensors").write_bytes(weights)
    return binary, model


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    parser.add_argument("--api-key")
    given, _ = parser.parse_known_args()
    replay = Replay(given.served_model_name or given.model, given.api_key)
    server = await asyncio.start_server(
        replay, "127.0.0.1", given.port, limit=2**24, reuse_address=True, backlog=256
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
