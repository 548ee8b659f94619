"""The checks of `doctor` on limits, certificates and MLX itself."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.cli.output import size
from langchain_car_vllm.cli.stability_checks import check_mends, check_panics
from langchain_car_vllm.environment import CAR_VLLM_MLX_BIN, SSL_CERT_FILE
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.models.proxies import find_proxies
from langchain_car_vllm.paths import managed_root
from langchain_car_vllm.runtime import interpreter_of
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.host import Host
from langchain_car_vllm.runtime.locate import binary_to_launch, is_managed
from langchain_car_vllm.runtime.uv_settings import has_system_certificates
from langchain_car_vllm.runtime.virtual_environment import holds_server
from langchain_car_vllm.server import running_servers
from langchain_car_vllm.server.memory import budget_bytes
from langchain_car_vllm.support.printable import printable
from langchain_car_vllm.support.proxy_variables import is_socks

_ENOUGH_FILES = 1024
_PATIENCE = 30.0
# The wheel that these versions select is built for 26.2, and fails on an M5.
_UNFIT_MACOS = ((26, 0), (26, 2))
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


def check_release(host: Host) -> None:
    """Warn of a macOS that MLX's newest wheel does not fit."""
    oldest, fixed = _UNFIT_MACOS
    if host.system == "darwin" and oldest <= host.release[:2] < fixed:
        raise Warned(
            f"macOS {'.'.join(map(str, host.release))}: MLX may fail on an M5, its wheel is built "
            "for macOS 26.2",
            "update to macOS 26.2 or newer",
        )


def check_binary(binary: Path, version: str | None) -> None:
    """Try the Python of a managed install, and any binary of a version that nothing tells.

    Raises:
        Warned: The next call mends it.
        Finding: It does not answer as `vllm-mlx` does.
    """
    root = managed_root()
    if root is not None and is_managed(binary) and not holds_server(root):
        raise Warned(
            f"the Python of `{root}` does not run, or was upgraded to another one",
            "run `car-vllm install`, or leave it to the next call",
        )
    if version is not None:
        return
    give_up_at = time.monotonic() + _PATIENCE

    def keep_going(_line: str | None) -> None:
        if time.monotonic() > give_up_at:
            raise ProvisionError("try", f"it did not end within {_PATIENCE:g} s")

    try:
        command = [binary, "--help"]
        said = run_step("try", command, directory=binary.parent, on_line=keep_going)
        wrong = None if "serve" in said else "`--help` names no `serve`"
    except ProvisionError as error:
        wrong = error.detail
    if wrong is not None:
        named = CAR_VLLM_MLX_BIN.read()
        cure = "unset CAR_VLLM_MLX_BIN" if named else "take it off PATH"
        raise Finding(f"`{binary}` does not answer as vllm-mlx does: {wrong}", cure)


def check_files() -> str:
    """Tell how many files and connections this program may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH_FILES:
        raise Warned(
            f"a program may open {hard} files at most, too few for hundreds of calls at once",
            f"raise the hard limit: `ulimit -H -n {_ENOUGH_FILES}`",
        )
    return f"a program may open {soft} files"


def check_certificates() -> str:
    """Tell whose certificates are trusted by what leaves the machine."""
    if named := SSL_CERT_FILE.read():
        if not Path(named).is_file():
            raise Finding(f"SSL_CERT_FILE=`{named}` is not a file", "unset or correct it")
        return f"those in `{named}` are trusted"
    if not has_system_certificates():
        return "the system has none; uv and the Hub's client bring their own"
    return "what the system trusts is trusted"


def check_proxies() -> str:
    """Tell which proxies downloads go through, and try what a SOCKS one needs."""
    proxies = sorted(set(find_proxies().values()))
    if not proxies:
        return "downloads go through none"
    binary = binary_to_launch()
    interpreter = interpreter_of(binary) if binary else None
    if interpreter is not None and any(map(is_socks, proxies)):
        try:
            run_step(
                "proxies", [interpreter, "-I", "-c", "import socksio"], directory=interpreter.parent
            )
        except ProvisionError as error:
            raise Warned(
                f"the proxy is a SOCKS one, and the install of `{interpreter}` lacks `socksio`",
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
        raise Warned("there is no runtime to try MLX in", "run `car-vllm install`")
    try:
        said = run_step(
            "mlx", [interpreter, "-I", "-c", _ONE_OPERATION], directory=interpreter.parent
        )
    except ProvisionError as error:
        raise Finding(
            f"MLX does not work in `{interpreter}`: {error.detail}",
            "run `car-vllm install --upgrade`, and see which `vllm-mlx` it names",
        ) from error
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    if found["total"] != 64.0**3:
        raise Finding(f"MLX multiplies wrongly: {found['total']}", "report it with your macOS")
    if not found["metal"]:
        return "one operation is right, on the CPU: there is no Metal here"
    working_set, budget = found["working_set"], budget_bytes()
    if working_set and budget > working_set:
        raise Warned(
            f"one operation is right on the GPU; models may take {size(budget)}, more than the "
            f"{size(working_set)} that Metal recommends",
            f"set CAR_VLLM_MLX_MEMORY_GB={working_set // 10**8 / 10} or less",
        )
    return (
        f"one operation is right on the GPU; Metal recommends {size(working_set)}, models may take "
        f"{size(budget)}"
    )


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
        return "no other server of models runs"
    held = ", ".join(f"`{name}` {size(memory)}" for name, memory in others.items())
    raise Warned(f"others hold memory that models could have: {held}", "end what you do not need")


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("files", check_files),
    ("certificates", check_certificates),
    ("proxies", check_proxies),
    ("panics", check_panics),
)
TRIALS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("mlx", check_mlx),
    ("mends", check_mends),
    ("company", check_company),
)
"""They take seconds, or judge what else runs; `--selftest` includes them."""
