"""What it costs to import, to construct and to find the runtime, each in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from statistics import median

from benchmarks.home import real
from benchmarks.rounds import Measured, medians, ratio
from benchmarks.rows import Check, Row

ROUNDS = 11
CORE = "from langchain_core.language_models import BaseChatModel"
OURS = (
    "from langchain_car_vllm import ChatVllmMlx; ChatVllmMlx(model='vllm-mlx/qwen3.6-35b-a3b:4bit')"
)
_LATE = {"openai", "langchain_openai", "httpx", "httpx2"}
_TIMED = """
import sys, time
began = time.process_time()
{statement}
print(time.process_time() - began, *sys.modules)
"""
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


def _run(code: str) -> tuple[float, set[str]]:
    """Return the seconds and the words that a process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, *words = done.stdout.split()
    return float(seconds), set(words)


def _import_row() -> Row:
    statements: Mapping[str, str] = {"langchain-core": CORE, "ChatVllmMlx": OURS}
    times: Measured = {name: [] for name in statements}
    late: set[str] = set()
    for _ in range(ROUNDS):
        imported = {}
        for name, statement in statements.items():
            seconds, imported[name] = _run(_TIMED.format(statement=statement))
            times[name].append(seconds)
        late |= (imported["ChatVllmMlx"] - imported["langchain-core"]) & _LATE
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
    found = median(seconds for seconds, _ in runs) * 1e3
    started = sum(bool(words) for _, words in runs)
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
