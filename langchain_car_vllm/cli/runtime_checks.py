"""The checks of `doctor` on limits, certificates, panics, and MLX and its mends themselves."""

import json
import platform
import re
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.cli.output import size
from langchain_car_vllm.environment import SSL_CERT_FILE
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.models.proxies import find_proxies
from langchain_car_vllm.runtime import interpreter_of
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.locate import binary_to_launch
from langchain_car_vllm.runtime.uv_settings import has_system_certificates
from langchain_car_vllm.server import running_servers
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.memory import budget_bytes
from langchain_car_vllm.server.supervisor.child import install_launcher
from langchain_car_vllm.server.wakefulness import Wakefulness
from langchain_car_vllm.support.file_presence import entries_of, is_file
from langchain_car_vllm.support.printable import printable
from langchain_car_vllm.support.programs import ask_program
from langchain_car_vllm.support.proxy_variables import is_socks

_ENOUGH_FILES = 1024
_REPORTS = Path("/Library/Logs/DiagnosticReports")
_DAYS = 30
_MOST_BYTES = 4_000_000
_PYTHON, _GPU = re.compile(rb"\bpython", re.IGNORECASE), re.compile(rb"IOGPU")
_DONE = ("applied", "not needed")
_PMSET = "/usr/bin/pmset"
_PATIENCE = 5.0
_COMPANY = ("ollama", "lm studio", "lms", "mlx_lm", "mlx_vlm", "vllm-mlx", "llama-server")
_ONE_OPERATION = """
import json
import mlx.core as mx
total = (mx.ones((64, 64)) @ mx.ones((64, 64))).sum()
mx.eval(total)
has_metal = mx.metal.is_available()
device = mx.device_info() if has_metal and hasattr(mx, "device_info") else {}
print(json.dumps({
    "total": total.item(),
    "metal": has_metal,
    "working_set": device.get("max_recommended_working_set_size"),
}))
"""


def check_files() -> str:
    """Tell how many files and connections this program may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH_FILES:
        raise Warned(
            f"a program may open at most {hard} files, too few for hundreds of concurrent calls",
            f"raise the hard limit: `ulimit -H -n {_ENOUGH_FILES}`",
        )
    return f"a program may open {soft} files"


def check_certificates() -> str:
    """Tell whose certificates are trusted by what leaves the machine."""
    if named := SSL_CERT_FILE.read():
        if not is_file(Path(named)):
            raise Finding(f"SSL_CERT_FILE=`{named}` is not a file", "unset or correct it")
        return f"those in `{named}` are trusted"
    if not has_system_certificates():
        return "the system has none; uv and the Hub's client bring their own"
    return "the system's certificates are trusted"


def check_proxies() -> str:
    """Tell which proxies downloads go through, and try what a SOCKS one needs."""
    proxies = sorted(set(find_proxies().values()))
    if not proxies:
        return "downloads use no proxy"
    binary = binary_to_launch()
    interpreter = interpreter_of(binary) if binary else None
    if interpreter is not None and any(map(is_socks, proxies)):
        try:
            run_step(
                "proxies", [interpreter, "-I", "-c", "import socksio"], directory=interpreter.parent
            )
        except ProvisionError as error:
            raise Warned(
                f"the proxy is a SOCKS proxy, and the install of `{interpreter}` lacks `socksio`",
                "run `car-vllm install --upgrade`, or set HTTPS_PROXY to an HTTP proxy",
            ) from error
    told = ", ".join(f"`{printable(_proxy_of(proxy))}`" for proxy in proxies)
    return f"downloads go through {told}"


def _proxy_of(address: str) -> str:
    """Return a proxy without user and password: these may hold any character, unescaped."""
    scheme, mark, rest = address.partition("://")
    place = rest if mark else address
    return f"{scheme if mark else 'http'}://{place.rpartition('@')[2]}"


def check_mlx() -> str:
    """Have the runtime's own Python multiply two matrices, on the GPU where there is Metal."""
    binary = binary_to_launch()
    interpreter = interpreter_of(binary) if binary else None
    if binary is None or interpreter is None:
        raise Warned("there is no runtime to test MLX in", "run `car-vllm install`")
    try:
        said = run_step(
            "mlx", [interpreter, "-I", "-c", _ONE_OPERATION], directory=interpreter.parent
        )
    except ProvisionError as error:
        raise Finding(
            f"MLX does not work in `{interpreter}`: {error.detail}",
            "run `car-vllm install --upgrade`, and check which `vllm-mlx` it names",
        ) from error
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    if found["total"] != 64.0**3:
        raise Finding(
            f"MLX multiplies wrongly: {found['total']}", "report it with your version of macOS"
        )
    if not found["metal"]:
        return "a test operation was right, on the CPU: there is no Metal here"
    working_set, budget = found["working_set"], budget_bytes()
    if working_set and budget > working_set:
        raise Warned(
            f"a test operation was right on the GPU; models may take {size(budget)}, more than "
            f"the {size(working_set)} that Metal recommends",
            f"set CAR_VLLM_MLX_MEMORY_GB={working_set // 10**8 / 10} or less",
        )
    return (
        f"a test operation was right on the GPU; Metal recommends {size(working_set)}, models "
        f"may take {size(budget)}"
    )


def check_sleep() -> str:
    """Have a Mac kept awake for a moment, and let it sleep again."""
    with Wakefulness() as awake:
        keeper = awake.keeper
        if keeper is None:
            return "this machine is not kept awake while it works"
        is_kept = _comes_to_prevent_sleep(keeper, wanted=True)
    if not (is_kept and _comes_to_prevent_sleep(keeper, wanted=False)):
        raise Warned(
            "the Mac may fall asleep while it works, or stay awake afterwards",
            "run `pmset -g assertions`, and report what it says",
        )
    return "the Mac is kept awake while it works, and no longer"


def _comes_to_prevent_sleep(pid: int, *, wanted: bool) -> bool:
    """Tell whether a program keeps the Mac awake, or does not, as is wanted, before long."""
    give_up_at = time.monotonic() + _PATIENCE
    while not (is_so := _prevents_sleep(pid) == wanted) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    return is_so


def _prevents_sleep(pid: int) -> bool:
    done = ask_program([_PMSET, "-g", "assertions"], _PATIENCE)
    lines = done.stdout.splitlines() if done else []
    return any(f"pid {pid}(" in line and "PreventUserIdleSystemSleep" in line for line in lines)


def check_company() -> str:
    """Tell which other servers of models hold memory."""
    ours = {state.server.pid for _, state in running_servers() if state.server}
    others: dict[str, int] = {}
    for process in psutil.process_iter(["name", "pid", "memory_info"]):
        name = (process.info["name"] or "").lower()
        memory = process.info["memory_info"]
        if process.info["pid"] not in ours and memory and name.startswith(_COMPANY):
            others[name] = others.get(name, 0) + memory.rss
    if not others:
        return "no other model server is running"
    held = ", ".join(f"`{name}` {size(memory)}" for name, memory in others.items())
    raise Warned(
        f"other programs hold memory that models could use: {held}",
        "end those that you do not need",
    )


def check_panics() -> str:
    """Look for reports of macOS that name Python and the GPU's driver."""
    if platform.system() != "Darwin":
        return "only macOS keeps reports of them"
    since = time.time() - _DAYS * 86_400
    try:
        # Those that were sent to Apple are put away.
        reports = [r for f in (_REPORTS, _REPORTS / "Retired") for r in entries_of(f, "*.panic")]
    except OSError as error:
        return f"`{_REPORTS}` cannot be read: {error.strerror}"
    found, unread = [], 0
    for report in reports:
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
            f"macOS panicked {len(found)} times in the last {_DAYS} days in the GPU driver under "
            f"Python, most recently on {day} (`{name}`)",
            "update macOS, set CAR_VLLM_MLX_WIRED=0, and lower CAR_VLLM_MLX_MEMORY_GB",
        )
    left_out = f"; {unread} reports cannot be read" if unread else ""
    return f"none in the last {_DAYS} days in the GPU driver under Python{left_out}"


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
                f"the runtime's modules cannot be inspected: {error.detail}",
                "run `car-vllm install --upgrade`",
            ) from error
    last = [line for line in said.splitlines() if line.startswith("{")][-1]
    states: dict[str, dict[str, str]] = json.loads(last)
    parts = [_format_state(name, **state) for name, state in states.items()]
    others = {s["state"] for s in states.values()} - set(_DONE) - {"not imported"}
    if others:
        raise Warned(
            ", ".join(parts),
            "the server runs as published there: run `car-vllm install --upgrade`, and report "
            "it if that does not help",
        )
    return ", ".join(parts)


def _format_state(name: str, *, state: str, detail: str) -> str:
    if state == "applied":
        return f"`{name}` applies"
    return f"`{name}` {state}{f' ({detail})' if detail else ''}"


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("files", check_files),
    ("certificates", check_certificates),
    ("proxies", check_proxies),
    ("panics", check_panics),
)
TRIALS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("mlx", check_mlx),
    ("mends", check_mends),
    ("sleep", check_sleep),
    ("company", check_company),
)
"""They take seconds, or judge what else runs; `--selftest` includes them."""
