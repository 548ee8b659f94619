"""The checks of `doctor` on what keeps a Mac and its server standing: panics, and mends."""

import json
import platform
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime import interpreter_of
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.locate import binary_to_launch
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.child import install_launcher

_REPORTS = Path("/Library/Logs/DiagnosticReports")
_DAYS = 30
_MOST_BYTES = 4_000_000
_PYTHON, _GPU = re.compile(rb"\bpython", re.IGNORECASE), re.compile(rb"IOGPU")
_DONE = ("applied", "not needed")


def check_panics() -> str:
    """Look for reports of macOS that name Python and the GPU's driver."""
    if platform.system() != "Darwin":
        return "only macOS keeps reports of them"
    since = time.time() - _DAYS * 86_400
    found, unread = [], 0
    for report in sorted(_REPORTS.glob("*.panic")):
        try:
            modified = report.stat().st_mtime
            if modified < since:
                continue
            with report.open("rb") as file:
                text = file.read(_MOST_BYTES)
        except OSError:
            unread += 1
            continue
        if _PYTHON.search(text) and _GPU.search(text):
            found.append((modified, report.name))
    if found:
        modified, name = max(found)
        day = datetime.fromtimestamp(modified, UTC).date()
        raise Warned(
            f"macOS panicked {len(found)} times in {_DAYS} days in the GPU's driver under Python, "
            f"the last time on {day} (`{name}`)",
            "update macOS, set CAR_VLLM_MLX_WIRED=0, and lower CAR_VLLM_MLX_MEMORY_GB",
        )
    left_out = f"; {unread} reports cannot be read" if unread else ""
    return f"none in {_DAYS} days in the GPU's driver under Python{left_out}"


def check_mends() -> str:
    """Have the launcher look what it would mend in the runtime, and list it."""
    binary = binary_to_launch()
    interpreter = interpreter_of(binary) if binary else None
    if interpreter is None:
        raise Warned("there is no runtime to mend", "run `car-vllm install`")
    with TemporaryDirectory(prefix="car-vllm-") as folder:
        install_launcher(ServerDirectory(Path(folder)))
        try:
            said = run_step(
                "mends", [interpreter, Path(folder) / "launch.py", "check"], directory=Path(folder)
            )
        except ProvisionError as error:
            raise Finding(
                f"the runtime's modules cannot be looked at: {error.detail}",
                "run `car-vllm install --upgrade`",
            ) from error
    last = [line for line in said.splitlines() if line.startswith("{")][-1]
    states: dict[str, dict[str, str]] = json.loads(last)
    parts = [_format_state(name, **state) for name, state in states.items()]
    others = {s["state"] for s in states.values()} - set(_DONE) - {"not imported"}
    if others:
        raise Warned(
            ", ".join(parts),
            "the server runs as it was published there: run `car-vllm install --upgrade`, and "
            "report it if it stays",
        )
    return ", ".join(parts)


def _format_state(name: str, *, state: str, detail: str, purpose: str) -> str:
    del purpose
    if state == "applied":
        return f"`{name}` applies"
    return f"`{name}` {state}{f' ({detail})' if detail else ''}"
