"""How vllm-mlx 0.6.0 writes its answers: bodies, events and their parts. Stdlib only."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fakes.reply import Reply


@dataclass
class Response:
    """What goes back: a body, or parts of one that are sent as they come."""

    status: int
    body: bytes | Iterator[bytes]
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class BrokenError(Exception):
    """The connection ends here, without an end."""


def deltas_of(reply: Reply) -> Iterator[dict[str, Any]]:
    """Yield a reply as the deltas of a stream."""
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
        text = arguments_text(args)
        head = {"index": index, "id": f"call_{place}", "type": "function"}
        if not reply.call_in_parts:
            yield {"tool_calls": [{**head, "function": {"name": name, "arguments": text}}]}
            continue
        yield {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(text), 5):
            part = {"arguments": text[start : start + 5]}
            yield {"tool_calls": [{"index": index, "function": part}]}


def tokens_of(text: str) -> list[str]:
    """Return a text's words, which stand for its tokens."""
    return re.findall(r"\s*\S+\s*", text)


def logprob_of(token: str, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """Return what is told of a token."""

    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    most = body.get("top_logprobs") or 0
    likely = reply.likely or {token + "!" * n: -0.5 - n for n in range(most)}
    others = [entry(text, value) for text, value in [*likely.items()][:most]]
    return {**entry(token, likely.get(token, -0.5)), "top_logprobs": others}


def stream_choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """Return a delta as the only choice of an event."""
    return {"index": 0, "delta": delta, "finish_reason": finish}


def finish_of(reply: Reply) -> str:
    """Return why a reply ended."""
    return reply.finish or ("tool_calls" if reply.calls else "stop")


def usage_of(reply: Reply) -> dict[str, Any]:
    """Return the tokens of a reply."""
    prompt, completion = reply.usage
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if reply.cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": reply.cached}
    return usage


def broken_body() -> Iterator[bytes]:
    """Yield a body that ends in its middle."""
    yield b'{"id": "chat'
    raise BrokenError


def arguments_text(args: dict[str, Any]) -> str:
    """Return the arguments of a call as the server writes them."""
    return json.dumps(args, ensure_ascii=False)


def event_frame(event: dict[str, Any]) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def json_response(status: int, value: Any) -> Response:
    """Return a body of JSON."""
    return Response(status, json.dumps(value, ensure_ascii=False).encode())


def schema_refusal(place: list[Any], message: str) -> Response:
    """Return a refusal of the request's schema."""
    return json_response(422, {"detail": [{"type": "value_error", "loc": place, "msg": message}]})
