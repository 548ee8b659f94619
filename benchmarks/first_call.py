"""The first call of a process whose server runs already: imports, lease and client."""

import os
import subprocess
import sys

from benchmarks.home import replayed, with_bytecode
from benchmarks.rounds import Measured, medians
from benchmarks.rows import Check, Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server

ROUNDS = 11
OURS, OPENAI = "ChatVllmMlx", "ChatOpenAI"
_OURS = """
import time
from langchain_car_vllm import ChatVllmMlx
llm = ChatVllmMlx(model={model!r})
began = time.perf_counter()
llm.invoke("hi")
print(time.perf_counter() - began)
"""
_OPENAI = """
import time
began = time.perf_counter()
from langchain_openai import ChatOpenAI
llm = ChatOpenAI(model={served!r}, base_url={base_url!r}, api_key={key!r})
llm.invoke("hi")
print(time.perf_counter() - began)
"""


def _seconds(code: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def rows() -> list[Row]:
    """Measure.

    ChatOpenAI's figure holds its import, since it brings the SDK along that ours imports with the
    first call; langchain-core is not part of either, as far as ours has imported it.
    """
    times: Measured = {OURS: [], OPENAI: []}
    with replayed() as model:
        endpoint = ensure_server(ChatVllmMlx(model=model, keep_alive="10m")._spec())
        codes = {
            OURS: _OURS.format(model=model),
            OPENAI: _OPENAI.format(
                served=endpoint.served_model, base_url=endpoint.base_url, key=endpoint.api_key
            ),
        }
        with with_bytecode() as cache:
            environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache["PYTHONPYCACHEPREFIX"]}
            for turn in range(-1, ROUNDS):
                for name, code in codes.items():
                    seconds = _seconds(code, environment)
                    if turn >= 0:
                        times[name].append(seconds)
    figures = medians(times, 1e3)
    return [
        Row(
            section="first_call",
            what="first call of a process, the server running",
            unit="ms",
            figures=figures,
            checks=(Check("more than ChatOpenAI's", figures[OURS] - figures[OPENAI], 150.0, "ms"),),
        )
    ]
