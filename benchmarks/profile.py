"""Where the time of a streamed chunk goes: ChatOpenAI's way, and ours."""

import cProfile
import pstats
import re
from collections import Counter

from benchmarks.clients import OPENAI, OURS, Clients
from benchmarks.home import replayed
from benchmarks.replay import TOKENS
from benchmarks.rows import Row
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import ensure_server

STREAMS = 10
_PACKAGES = {
    "httpx2": "transport",
    "httpcore2": "transport",
    "h11": "transport",
    "anyio": "transport",
    "openai": "OpenAI SDK",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic",
    "typing_extensions": "pydantic",
    "langchain_openai": "langchain-openai",
    "langchain_core": "langchain-core",
    "langsmith": "langchain-core",
    "langchain_car_vllm": "langchain-car-vllm",
}
_REST = "Python and its library"


def _package(file: str) -> str:
    found = re.search(r"site-packages/(\w+)", file) or re.search(r"/(langchain_car_vllm)/", file)
    return _PACKAGES.get(found[1], _REST) if found else _REST


def _profiled(clients: Clients, name: str) -> dict[str, float]:
    """Return the microseconds of a chunk by package, and the function calls that it takes."""
    stream = clients.streams()[name]
    stream()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(STREAMS):
        stream()
    profile.disable()
    chunks = STREAMS * TOKENS
    times: Counter[str] = Counter()
    calls = 0
    for (file, _, _), (_, called, own, _, _) in pstats.Stats(profile).stats.items():
        times[_package(file)] += own * 1e6 / chunks
        calls += called
    return {**dict(times.most_common()), "function calls": calls / chunks}


def rows() -> list[Row]:
    """Measure."""
    with replayed() as model:
        clients = Clients(model, ensure_server(ChatVllmMlx(model=model)._spec()))
        return [
            Row("profile", f"a streamed chunk under cProfile, {name}", "us", found)
            for name, found in ((n, _profiled(clients, n)) for n in (OPENAI, OURS))
        ]
