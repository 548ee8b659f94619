"""Feeds a model's output, piece by piece, to the real server's parsers; runs under its Python.

Reads a JSON list of cases from standard input and writes what a client would get for each, streamed
and not: reasoning, content and tool calls. Only the engine is not real: it says what the case says.
"""

import asyncio
import json
import re
import sys
from types import SimpleNamespace

from vllm_mlx import server
from vllm_mlx.api.models import ChatCompletionRequest
from vllm_mlx.reasoning import get_parser

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["city"],
            },
        },
    }
]
# Markers come as one token, words in pieces.
PIECES = re.compile(r"<[^<>\s]{1,40}>|\[[A-Z_/]+\]|\s?\w{1,4}|\W", re.DOTALL)


class Tokenizer:
    """A tokenizer that is known by its template alone."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def get_vocab(self):
        return {}


class Engine:
    """An engine that says what it was told to."""

    model_name = "test"
    is_mllm = False
    preserve_native_tool_format = False

    def __init__(self, case: dict) -> None:
        self.text = case["text"]
        self.prompt_end = "<think>\n" if case.get("opens_thought") else ""
        self.tokenizer = Tokenizer(f"prompt ends with {self.prompt_end!r}")

    def _apply_chat_template(self, messages, **kwargs):
        return "<|im_start|>assistant\n" + self.prompt_end

    async def stream_chat(self, messages, **kwargs):
        pieces = PIECES.findall(self.text)
        assert "".join(pieces) == self.text
        for number, piece in enumerate(pieces, 1):
            last = number == len(pieces)
            yield SimpleNamespace(
                new_text=piece,
                text=self.text,
                finished=last,
                finish_reason="stop" if last else None,
                prompt_tokens=1,
                completion_tokens=number,
                logprobs=None,
                cached_tokens=0,
            )


def configure(tool_call: str | None, reasoning: str | None) -> None:
    """Do what `vllm-mlx serve` does with its flags (`vllm_mlx/cli.py`, 0.6.0)."""
    server._enable_auto_tool_choice = tool_call is not None
    server._tool_call_parser = tool_call
    server._tool_parser_instance = None
    server._reasoning_parser = get_parser(reasoning)() if reasoning else None
    server._reasoning_parser_name = reasoning


def request_for(case: dict) -> ChatCompletionRequest:
    content = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
    if case.get("buffered"):
        content["tool_argument_recovery"] = "buffered"
    return ChatCompletionRequest(**content, **({"tools": TOOLS} if case["tools"] else {}))


def plain(case: dict) -> dict:
    reasoning, content, calls = server._extract_reasoning_and_tool_calls(
        case["text"], request_for(case), engine=Engine(case)
    )
    found = [(call.function.name, call.function.arguments) for call in calls or []]
    return result(reasoning, server.clean_output_text(content) if content else "", found)


async def streamed(case: dict) -> dict:
    reasoning = content = ""
    calls: dict[int, list[str]] = {}
    chunks = server.stream_chat_completion(Engine(case), [], request_for(case))
    async for chunk in chunks:
        data = chunk.removeprefix("data: ").strip()
        if data == "[DONE]":
            continue
        for choice in json.loads(data).get("choices", []):
            delta = choice["delta"]
            reasoning += delta.get("reasoning_content") or ""
            content += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                name_and_arguments = calls.setdefault(call.get("index", 0), ["", ""])
                function = call.get("function") or {}
                name_and_arguments[0] += function.get("name") or ""
                name_and_arguments[1] += function.get("arguments") or ""
    return result(reasoning, content, [tuple(call) for call in calls.values()])


def result(reasoning: str | None, content: str | None, calls: list[tuple[str, str]]) -> dict:
    return {
        "reasoning": (reasoning or "").strip(),
        "content": (content or "").strip(),
        "calls": [[name, loaded(arguments)] for name, arguments in calls],
    }


def loaded(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def main() -> None:
    results = []
    for case in json.load(sys.stdin):
        configure(case["tool_call"], case["reasoning"])
        results.append({"plain": plain(case), "streamed": asyncio.run(streamed(case))})
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
