"""What supervision costs, with the tests' fake server."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.support import Fake

from benchmarks.rows import Check, Row
from langchain_car_vllm.server import lease, stop_server

ATTACH = """
import time
from langchain_car_vllm.server import ServerSpec, lease
spec = ServerSpec(source={model!r}, served_name={model!r}, keep_alive=60.0)
began = time.perf_counter()
with lease(spec):
    print(time.perf_counter() - began)
"""


def request_cost(spec) -> float:
    """Seconds that a lease of a known server takes."""
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        with lease(spec):
            pass
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def attach_cost(fake: Fake) -> float:
    """Seconds that the first lease of another process takes, imports aside."""
    command = [sys.executable, "-c", ATTACH.format(model=str(fake.model))]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(9)]
    return statistics.median(float(run.stdout) for run in runs)


def release_cost(fake: Fake) -> float:
    """Seconds from readiness, as the state says, until a waiting client has its lease."""
    times = []
    for number in range(5):
        gate = fake.gate(f"load{number}")
        fake.switch(load_gate=gate)
        spec = fake.spec(server_args=("--max-tokens", str(100 + number)))
        released: list[float] = []

        def wait(spec=spec, released=released) -> None:
            with lease(spec):
                released.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        changes = {"server_args": spec.server_args}
        fake.wait_for_phase("load", **changes)
        fake.open_gate(f"load{number}")
        thread.join()
        ready_at = fake.state(**changes).ready_at
        assert ready_at is not None
        times.append(released[0] - ready_at)
        stop_server(fake.directory(**changes))
    return statistics.median(times)


def idle_cost(fake: Fake, seconds: float = 20.0) -> tuple[float, float]:
    """Megabytes that the supervisor holds, and the share of a core that it takes when idle."""
    process = psutil.Process(fake.state().supervisor.pid)
    before = process.cpu_times()
    began = time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    used = (after.user - before.user) + (after.system - before.system)
    return process.memory_info().rss / 1e6, 100 * used / (time.monotonic() - began)


def rows() -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"HOME": folder}):
        os.environ.pop("CAR_HOME", None)
        fake = Fake(Path(folder) / "fake")
        os.environ["CAR_VLLM_MLX_BIN"] = str(fake.binary)
        spec = fake.spec()
        with lease(spec):
            pass
        memory, cpu = idle_cost(fake)
        found = [
            ("supervisor, resident", memory, 30.0, "MB"),
            ("supervisor, idle", cpu, 0.2, "% of a core"),
            ("a request's supervision (lease and state)", request_cost(spec) * 1e3, 0.2, "ms"),
            ("first lease of another process, imports aside", attach_cost(fake) * 1e3, 20.0, "ms"),
        ]
        stop_server(fake.directory())
        found.append(
            ("from ready until a waiting call goes on", release_cost(fake) * 1e3, 100.0, "ms")
        )
    return [
        Row("supervision", what, unit, {"ChatVllmMlx": value}, (Check("", value, bar, unit),))
        for what, value, bar, unit in found
    ]
