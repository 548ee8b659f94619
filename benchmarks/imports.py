"""What it costs to import, to construct and to find the runtime, each in processes of their own."""

import os
import subprocess
import sys
from statistics import median

from benchmarks.home import real, with_bytecode
from benchmarks.rounds import Measured, medians, ratio
from benchmarks.rows import Check, Row

ROUNDS = 11
CORE = "from langchain_core.language_models import BaseChatModel"
OURS = (
    "from langchain_car_vllm import ChatVllmMlx; ChatVllmMlx(model='vllm-mlx/qwen3.6-35b-a3b:4bit')"
)
_LATE = {"openai", "langchain_openai", "httpx", "httpx2"}
# Python 3.11 takes and gives back memory at each call that crosses the end of a chunk of its stack:
# how deep in calls an import begins makes up to a tenth, for or against whoever is measured.
_TIMED = """
import sys, time

def deep_in(calls):
    if calls:
        deep_in(calls - 1)
        return
    {code}

began = time.perf_counter()
deep_in({depth})
print(time.perf_counter() - began, *sys.modules)
"""
_DEEPER = 4
_FIND = """
import sys, time
from langchain_car_vllm.runtime import resolve_existing
started = []
sys.addaudithook(lambda name, _: started.append(name) if name == "subprocess.Popen" else None)
began = time.perf_counter()
found = resolve_existing()
taken = time.perf_counter() - began
assert found is not None
print(taken, *started)
"""


def _run(code: str, environment: dict[str, str] | None = None) -> list[str]:
    """Return the words that a process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def _import_row() -> Row:
    """Return what an import takes, each in processes of their own, with bytecode as users have."""
    times: Measured = {"langchain-core": [], "ChatVllmMlx": []}
    imported: dict[str, set[str]] = {}
    with with_bytecode() as environment:
        for turn in range(-1, ROUNDS):
            depth = max(turn, 0) * _DEEPER
            for name, code in (("langchain-core", CORE), ("ChatVllmMlx", OURS)):
                seconds, *modules = _run(_TIMED.format(code=code, depth=depth), environment)
                imported[name] = set(modules)
                if turn >= 0:
                    times[name].append(float(seconds))
    late = _LATE & (imported["ChatVllmMlx"] - imported["langchain-core"])
    return Row(
        section="imports",
        what="import and construct",
        unit="ms",
        figures=medians(times, 1e3),
        checks=(
            Check("of langchain-core's", ratio(times, "ChatVllmMlx", "langchain-core"), 1.05),
            Check("of openai and httpx imported", len(late), 0),
        ),
    )


def _runtime_row() -> Row:
    with real():
        del os.environ["CAR_VLLM_MLX_BIN"]
        runs = [_run(_FIND) for _ in range(ROUNDS)]
    found = median(float(seconds) for seconds, *_ in runs) * 1e3
    started = sum(bool(words) for _, *words in runs)
    return Row(
        section="imports",
        what="find the runtime",
        unit="ms",
        figures={"ChatVllmMlx": found},
        checks=(Check("", found, 3.0, "ms"), Check("interpreters started", started, 0)),
    )


def rows() -> list[Row]:
    """Measure."""
    return [_import_row(), _runtime_row()]
