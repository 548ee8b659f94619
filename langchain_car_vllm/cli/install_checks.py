"""The checks of `doctor` on what is installed or set: Python, uv, `vllm-mlx` and variables."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.environment import (
    CAR_UV,
    CAR_VLLM_MLX_BASE_URL,
    CAR_VLLM_MLX_BIN,
    VARIABLES,
    inherited_environment,
    refused_variables,
)
from langchain_car_vllm.errors import ConfigurationError, ProvisionError
from langchain_car_vllm.models.hub_account import checked_endpoint, sendable_token
from langchain_car_vllm.paths import RECONNECT, can_be_made, lost_disk, managed_root
from langchain_car_vllm.runtime import installed_version
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.environment_folder import (
    OF_ITS_OWN,
    check_own_runtime,
    find_stranger,
)
from langchain_car_vllm.runtime.host import Host, check_host, current_host, is_translated
from langchain_car_vllm.runtime.locate import (
    binary_passed_over,
    binary_to_launch,
    is_managed,
    overriding_binary,
)
from langchain_car_vllm.runtime.marker import is_incomplete
from langchain_car_vllm.runtime.mounts import ELSEWHERE, is_noexec
from langchain_car_vllm.runtime.runtime import retry_installs
from langchain_car_vllm.runtime.uv_binary import find_uv
from langchain_car_vllm.runtime.versions import version_warning
from langchain_car_vllm.runtime.virtual_environment import holds_server
from langchain_car_vllm.server.client.spawn import package_path
from langchain_car_vllm.server.interpreter import supervisor_environment, supervisor_python

_PATIENCE = 30.0
# The wheel that these versions select is built for 26.2, and fails on an M5.
_UNFIT_MACOS = ((26, 0), (26, 2))
_SUPERVISES = """
import platform
import langchain_car_vllm.server.supervisor.lifecycle
print(platform.python_version())
"""
_OTHER_PYTHON = "unset CAR_VLLM_PYTHON, or name one that has langchain-car-vllm installed"


def check_release(host: Host) -> None:
    """Warn of a macOS that MLX's newest wheel does not fit."""
    oldest, fixed = _UNFIT_MACOS
    if host.system == "darwin" and oldest <= host.release[:2] < fixed:
        raise Warned(
            f"macOS {'.'.join(map(str, host.release))}: MLX may fail on an M5, its wheel is built "
            "for macOS 26.2",
            "update to macOS 26.2 or newer",
        )


def _check_binary(binary: Path, version: str | None) -> None:
    """Try the Python of a managed install, and any binary of a version that nothing tells.

    Raises:
        Warned: The next call mends it.
        Finding: It does not answer as `vllm-mlx` does.
    """
    root = managed_root()
    if root is not None and is_managed(binary) and not holds_server(root):
        raise Warned(
            f"the Python in `{root}` does not run, or was replaced by another version",
            "run `car-vllm install`, or leave it to the next call",
        )
    if version is not None:
        return
    give_up_at = time.monotonic() + _PATIENCE

    def keep_going(_line: str | None) -> None:
        if time.monotonic() > give_up_at:
            raise ProvisionError("try", f"it did not finish within {_PATIENCE:g} s")

    try:
        command = [binary, "--help"]
        said = run_step("try", command, directory=binary.parent, on_line=keep_going)
        wrong = None if "serve" in said else "`--help` does not list `serve`"
    except ProvisionError as error:
        wrong = error.detail
    if wrong is not None:
        named = CAR_VLLM_MLX_BIN.read()
        cure = "unset CAR_VLLM_MLX_BIN" if named else "take it off PATH"
        raise Finding(f"`{binary}` does not behave like vllm-mlx: {wrong}", cure)


def _host() -> str:
    host = current_host()
    check_host(host)
    check_release(host)
    release = ".".join(map(str, host.release))
    system = "macOS" if host.system == "darwin" else f"{host.system} with glibc"
    return f"{system} {release or 'of unknown version'} on {host.machine}"


def _python() -> str:
    python = supervisor_python()
    try:
        version = run_step(
            "python",
            [python, "-P", "-c", _SUPERVISES],
            directory=Path(),
            environment=supervisor_environment(inherited_environment(), package_path()),
        )
    except ProvisionError as error:
        raise Finding(
            f"`{python}` cannot run the supervisor: {error.detail}", _OTHER_PYTHON
        ) from error
    said = f"{version} in `{python}`"
    if is_translated(current_host()):
        raise Warned(
            f"{said} is built for Intel and runs under Rosetta; the runtime has its own Python",
            "use a Python for Apple silicon: it is faster and starts sooner",
        )
    return said


def _uv() -> str:
    found, named = find_uv(), CAR_UV.read()
    if named and found != Path(named).absolute():
        raise Warned(
            f"CAR_UV=`{named}` is not a working uv and is ignored: `{found}` is used instead",
            "unset or correct it",
        )
    return f"`{found}`"


def _runtime() -> str:
    root = managed_root()
    named = CAR_VLLM_MLX_BIN.read()
    if named and overriding_binary() is None:
        raise Warned(
            f"CAR_VLLM_MLX_BIN=`{named}` is not a file and is ignored", "unset or correct it"
        )
    retry_installs()
    found = binary_to_launch()
    place = root if found is None or is_managed(found) else None
    if place is not None and is_noexec(place):
        raise Finding(f"the disk of `{place}` does not let programs run (noexec)", ELSEWHERE)
    if found is None:
        raise _missing_runtime(root)
    version = installed_version(found)
    _check_binary(found, version)
    if warning := version_warning(version, found):
        raise Warned(warning)
    if passed := binary_passed_over():
        raise Warned(
            f"`{passed.binary}` is found first but not used: it {passed.reason}; vllm-mlx "
            f"{version} in `{found}` is used instead"
        )
    return f"vllm-mlx {version or 'of unknown version'} in `{found}`"


def _missing_runtime(root: Path | None) -> Finding:
    """Return what to say where there is no runtime."""
    if root is not None:
        check_own_runtime(root)
    if root is not None and is_incomplete(root):
        return Warned(f"the installation in `{root}` is unfinished", "run `car-vllm install`")
    if root is not None and (broken := lost_disk(root)):
        return Finding(f"vllm-mlx was not found: {broken}", RECONNECT)
    if root is None or not can_be_made(root):
        return Finding(
            f"vllm-mlx is not installed, and `{root or '~/.car'}` cannot be created for it",
            "set CAR_HOME to a folder that you can write to",
        )
    if stranger := find_stranger(root):
        return Finding(
            f"vllm-mlx is not installed, and `{root}` holds other files, such as `{stranger}`",
            OF_ITS_OWN,
        )
    return Warned(f"vllm-mlx is not installed; the first call installs it into `{root}`")


def _variables() -> str:
    refused = [*refused_variables(), *_refusals()]
    if refused:
        cure = refused[0].hint if len(refused) == 1 else "unset or correct them"
        raise Finding("; ".join(error.message for error in refused), cure)
    ours = [v.name for v in VARIABLES.values() if v.group == "own" and v.text() is not None]
    return f"{', '.join(ours)} can work" if ours else "no variable of this package is set"


def _refusals() -> Iterator[ConfigurationError]:
    """Yield what is wrong with those that are read where they are used."""
    # No other command line needs pydantic.
    from langchain_car_vllm.setting_checks import (  # noqa: PLC0415
        check_endpoint,
        checked_url,
        endpoint_key,
    )

    def check_url() -> None:
        if url := CAR_VLLM_MLX_BASE_URL.read():
            checked_url(url)

    def check_key() -> None:
        check_endpoint(endpoint_key(), {})

    checks: tuple[Callable[[], object], ...]
    checks = (check_url, check_key, checked_endpoint, sendable_token)
    for check in checks:
        try:
            check()
        except ConfigurationError as error:
            yield error


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("host", _host),
    ("python", _python),
    ("uv", _uv),
    ("runtime", _runtime),
    ("variables", _variables),
)
