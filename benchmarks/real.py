"""Eight at once, a cold start and a second process, on the real server."""

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from benchmarks.home import ROOT, fast_cpu, real, smollm2, with_bytecode
from benchmarks.rounds import Measured, medians, ratio
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server import ensure_server

COMPANY = 8
LENGTHS = {16: 0.95, 64: 0.98}
"""Tokens of an answer, and the least share of a bare client's rate.

The shorter it is, the more counts one step more of the batch, for who came a moment later.
"""
ROUNDS = 4
STARTS = 4
PROCESSES = 7
TORCH_SECONDS = 3.0
_POLL = 0.05
_STORY = "Story {number}: write a very long tale about a lighthouse keeper and the sea."
_OURS, _BARE = "ChatVllmMlx", "bare asyncio"


def _body(model: str, text: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _bare_answer(endpoint: Endpoint, text: str, length: int) -> int:
    """Stream an answer over a bare connection and return its tokens."""
    parts = urlsplit(endpoint.base_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps(_body(endpoint.served_model, text, length)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {endpoint.api_key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    tokens = 0
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            usage = json.loads(line[6:]).get("usage")
            tokens = usage["completion_tokens"] if usage else tokens
    writer.close()
    return tokens


async def _our_answer(model: ChatVllmMlx, text: str, length: int) -> int:
    tokens = 0
    async for chunk in model.astream(text, max_tokens=length):
        if chunk.usage_metadata:
            tokens = chunk.usage_metadata["output_tokens"]
    return tokens


async def _together(answer: Callable[[str], Awaitable[int]], first: int) -> float:
    """Return the tokens per second of as many answers as there are users."""
    stories = [_STORY.format(number=first + n) for n in range(COMPANY)]
    began = time.perf_counter()
    tokens = await asyncio.gather(*map(answer, stories))
    return sum(tokens) / (time.perf_counter() - began)


async def _company(model: ChatVllmMlx, endpoint: Endpoint, length: int, number: int) -> Row:
    answers: dict[str, Callable[[str], Awaitable[int]]] = {
        _OURS: lambda text: _our_answer(model, text, length),
        _BARE: lambda text: _bare_answer(endpoint, text, length),
    }
    rates: dict[str, list[float]] = {_OURS: [], _BARE: []}
    for turn in range(-1, ROUNDS):
        for name in sorted(answers, reverse=turn % 2 == 0):
            rate = await _together(answers[name], number)
            number += COMPANY
            if turn >= 0:
                rates[name].append(rate)
    kept = median(a / b for a, b in zip(rates[_OURS], rates[_BARE], strict=True))
    return Row(
        section="real",
        what=f"{COMPANY} parallel answers of {length} tokens, SmolLM2-135M",
        unit="tokens/s",
        figures={name: median(values) for name, values in rates.items()},
        checks=(Check("of a bare client's", kept, LENGTHS[length], at_least=True),),
    )


_FIRST_TOKEN = """
import os, sys, time
from langchain_car_vllm import ChatVllmMlx
llm = ChatVllmMlx(model={model!r}, temperature=0, max_tokens=1, server_env={environment!r})
began = time.perf_counter()
next(chunk for chunk in llm.stream("Say hi.") if chunk.text)
print(time.perf_counter() - began)
llm.unload(force=True)
"""


def _our_start(
    model: str, environment: dict[str, str], server_env: dict[str, str] | None = None
) -> float:
    code = _FIRST_TOKEN.format(model=model, environment={**fast_cpu(), **(server_env or {})})
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout)


def _scripted_start(model: str, environment: dict[str, str]) -> float:
    """Do what a script does: start, poll, post; return the seconds to the first token."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [os.environ["CAR_VLLM_MLX_BIN"], "serve", model, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--continuous-batching"]
    began = time.perf_counter()
    server = subprocess.Popen(
        command,
        env={**environment, **fast_cpu()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _is_healthy(port):
            assert server.poll() is None
            time.sleep(_POLL)
        _bare_first_token(f"127.0.0.1:{port}", None, _body(model, "Say hi.", 1))
        return time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _bare_first_token(address: str, key: str | None, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=300)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    while line := response.readline():
        if b'"content":"' in line:
            break
    taken = time.perf_counter() - began
    connection.close()
    return taken


def _cold_start(model: str) -> Row:
    ours, script = [], []
    with with_bytecode() as environment:
        for turn in range(-1, STARTS):
            times = _scripted_start(model, environment), _our_start(model, environment)
            if turn >= 0:
                script.append(times[0])
                ours.append(times[1])
    excess = median(a - 1.03 * b for a, b in zip(ours, script, strict=True)) * 1e3
    return Row(
        section="real",
        what="cold start to the first token, SmolLM2-135M",
        unit="s",
        figures={_OURS: median(ours), "script that serves, polls and posts": median(script)},
        checks=(Check("above 1.03 times the script's", excess, 100.0, "ms"),),
    )


def _start_beside_torch(model: str) -> Row:
    """Return what a start takes where torch is installed, as on every Mac.

    Here torch is a package whose import takes as long as the real one's on a Mac.
    """
    times: Measured = {"with torch": [], "without": []}
    with TemporaryDirectory() as folder, with_bytecode() as environment:
        package = Path(folder) / "torch"
        package.mkdir()
        (package / "__init__.py").write_text(
            f'import time\n__version__ = "2.9.0"\ntime.sleep({TORCH_SECONDS})\n'
        )
        for turn in range(-1, STARTS):
            for name, path in (("with torch", folder), ("without", f"{folder}/nothing")):
                taken = _our_start(model, environment, {"PYTHONPATH": path})
                if turn >= 0:
                    times[name].append(taken)
    return Row(
        section="real",
        what="cold start to the first token with torch installed, SmolLM2-135M",
        unit="s",
        figures=medians(times),
        checks=(Check("of without", ratio(times, "with torch", "without"), 1.05),),
    )


_SECOND = """
import sys, time
sys.path.insert(0, {root!r})
import langchain_car_vllm.server.client.lease, langchain_car_vllm.server.client.stop
import langchain_car_vllm.runtime, langchain_car_vllm.wire.chat
from benchmarks.real import _bare_first_token, _body
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server
llm = ChatVllmMlx(model={model!r}, temperature=0, max_tokens=1, server_env={environment!r})
began = time.perf_counter()
next(chunk for chunk in llm.stream("Say {number}.") if chunk.text)
print(time.perf_counter() - began)
endpoint = ensure_server(llm._spec())
address = endpoint.base_url.removeprefix("http://").removesuffix("/v1")
for turn in range(5):
    body = _body(endpoint.served_model, "Say " + str({number} + turn + 1) + ".", 1)
    print(_bare_first_token(address, endpoint.api_key, body))
"""


def _second_process(model: str) -> Row:
    ours, bare = [], []
    for number in range(PROCESSES):
        code = _SECOND.format(
            root=str(ROOT), model=model, environment=fast_cpu(), number=100 + 10 * number
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
        )
        first, *requests = map(float, done.stdout.split())
        ours.append(first * 1e3)
        bare.append(median(requests) * 1e3)
    above = median(a - b for a, b in zip(ours, bare, strict=True))
    return Row(
        section="real",
        what="first call of a second process, imports aside",
        unit="ms",
        figures={_OURS: median(ours), "the request itself": median(bare)},
        checks=(Check("above the request itself", above, 20.0, "ms"),),
    )


def rows() -> list[Row]:
    """Measure."""
    with real():
        model = smollm2()
        found = [_cold_start(model), _start_beside_torch(model)]
        chat = ChatVllmMlx(model=model, temperature=0, server_env=fast_cpu())
        endpoint = ensure_server(chat._spec())
        found.append(_second_process(model))
        for number, length in enumerate(LENGTHS, start=1):
            found.append(asyncio.run(_company(chat, endpoint, length, 1000 * number)))
        return found
