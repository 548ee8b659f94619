"""Installing `vllm-mlx` into the managed environment, safe against being killed at any step.

Lock, look again, mark as unfinished, make an environment where no Python runs, install, test, mark
as complete. Killed anywhere, the next run finds the unfinished mark and goes over all of it again.
"""

import logging
import shutil
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from langchain_car_vllm import paths
from langchain_car_vllm.errors import (
    NotFoundAfterInstallError,
    ProvisionError,
    RuntimeMissingError,
)
from langchain_car_vllm.progress import OnProgress, Progress
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.environment import (
    NEWEST_PYTHON,
    OLDEST_PYTHON,
    Python,
    check_imports,
    check_locked,
    check_unused,
    former_python,
    probe_python,
    python_binary,
    server_binary,
)
from langchain_car_vllm.runtime.host import check_host, current_host
from langchain_car_vllm.runtime.install_lock import install_lock
from langchain_car_vllm.runtime.locate import installed_version, resolve_existing
from langchain_car_vllm.runtime.marker import Marker, read_marker, write_marker
from langchain_car_vllm.runtime.requirements import Requirements, needed_mb, wanted_requirements
from langchain_car_vllm.runtime.uv_binary import find_uv

_TOLD = ("resolved", "downloading", "building", "prepared", "installed")

log = logging.getLogger(__name__)

_MB = 1_000_000
_NEWER_PYTHON = (NEWEST_PYTHON[0], NEWEST_PYTHON[1] + 1)
_PYTHON_RANGE = "cpython>={}.{},<{}.{}".format(*OLDEST_PYTHON, *_NEWER_PYTHON)
# What uv fetches itself where the Mac has only a Python for Intel.
_NATIVE_MAC_PYTHON = "cpython-3.12-macos-aarch64-none"


class Reporter:
    """Tells a caller what the installation is doing.

    Args:
        on_progress: Told of each step, and twice a second in between; an exception that it raises
            ends the installation.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._detail = ""

    def say(self, detail: str) -> None:
        """Report a step."""
        self._detail = detail
        self.still()

    def still(self) -> None:
        """Report that the last step goes on."""
        if self._on_progress is not None:
            elapsed = time.monotonic() - self._began
            self._on_progress(Progress("install", self._detail, elapsed=elapsed))

    def uv_line(self, line: str | None) -> None:
        """Report what uv says of its work, and that it is still at it."""
        if line is None:
            self.still()
        elif line.lower().startswith(_TOLD):
            self.say(line[0].lower() + line[1:])


def provision(on_progress: OnProgress | None = None) -> Path:
    """Return a proven binary, installed into the managed environment if there is none.

    Args:
        on_progress: See `Reporter`.

    Raises:
        RuntimeProvisioningError: It cannot be installed; nothing half-done is ever used.
    """
    root = _managed_root()
    report = Reporter(on_progress)
    uv = _prepare(root)
    with _locked(root, report) as lock:
        return _proven(root, report) or _install(root, uv, lock, report)


def prove(on_progress: OnProgress | None = None, *, reason: str) -> Path:
    """Return a proven binary without installing anything.

    Args:
        on_progress: See `Reporter`.
        reason: What turned installing off.

    Raises:
        RuntimeMissingError: There is none.
    """
    root = _managed_root()
    if resolve_existing() is None:
        raise RuntimeMissingError(reason)
    report = Reporter(on_progress)
    with _locked(root, report):
        if found := _proven(root, report):
            return found
    raise RuntimeMissingError(f"{reason}; the one in `{root}` does not work")


def upgrade(on_progress: OnProgress | None = None) -> Path:
    """Bring the managed environment to the wanted requirements and return its binary.

    Args:
        on_progress: See `Reporter`.

    Raises:
        RuntimeProvisioningError: It cannot be done; the former install stays in use if it still
            works.
    """
    root = _managed_root()
    report = Reporter(on_progress)
    uv = _prepare(root)
    with _locked(root, report) as lock:
        former = read_marker(root)
        try:
            return _install(root, uv, lock, report)
        except ProvisionError:
            _keep_former(root, former)
            raise


def is_proven(binary: Path) -> bool:
    """Return whether a binary need not be tested: a marked one, or one that is not managed."""
    root = paths.managed_root()
    if root is None or binary != server_binary(root).resolve():
        return True
    return read_marker(root) is not None


def _managed_root() -> Path:
    root = paths.managed_root()
    if root is None:
        raise ProvisionError(
            "resolve-home",
            "HOME is not set",
            hint="set HOME, or point CAR_VLLM_MLX_BIN to a `vllm-mlx` of your own",
        )
    return root


def _prepare(root: Path) -> Path:
    check_host(current_host())
    uv = find_uv()
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free // _MB
    except OSError as error:
        raise ProvisionError(
            "mkdir", str(error), hint=f"make `{root}` a directory that you can write to"
        ) from error
    needed = needed_mb()
    if free < needed and read_marker(root) is None:
        raise ProvisionError(
            "disk",
            f"the runtime needs {needed} MB, `{root}` has {free} MB free",
            hint=f"free {needed - free} MB and try again",
        )
    return uv


def _locked(root: Path, report: Reporter) -> AbstractContextManager[int]:
    def wait() -> None:
        report.say("waiting for another process that installs vllm-mlx")

    return install_lock(root.with_name(f"{root.name}.lock"), wait)


def _proven(root: Path, report: Reporter) -> Path | None:
    """Return a binary that another process finished, or that passes the test now."""
    found = resolve_existing()
    if found is None or is_proven(found):
        return found
    report.say("testing the vllm-mlx that is there")
    try:
        check_imports(root, lambda _line: report.still())
    except ProvisionError as error:
        log.warning("the vllm-mlx in `%s` does not work: %s", root, error.detail)
        return None
    version = installed_version(found) or ""
    write_marker(root, Marker("complete", ours=False, requirements="found", version=version))
    return found


def _install(root: Path, uv: Path, lock: int, report: Reporter) -> Path:
    former = read_marker(root)
    ours = former.ours if former else not (root / "pyvenv.cfg").exists()
    wanted = wanted_requirements(ours=ours)
    check_unused(root)
    _mark(root, Marker("installing", ours, wanted.name))
    python = _ensure_python(root, uv, lock, report)
    report.say("resolving packages")
    # A killed uv leaves packages whose metadata is there and whose files are not.
    again = former is not None and former.state == "installing" and ours
    command: list[str | Path] = [uv, "pip", "install", "--python", python_binary(root)]
    command += ["--reinstall"] * again
    command += wanted.arguments
    run_step("pip-install", command, directory=root, on_line=report.uv_line, keep_open=(lock,))
    binary = server_binary(root)
    if not binary.is_file():
        raise NotFoundAfterInstallError(root)
    report.say("testing vllm-mlx")
    _check_installed(root, wanted, python, report)
    version = installed_version(binary) or ""
    _mark(root, Marker("complete", ours, wanted.name, version))
    return binary.resolve()


def _check_installed(root: Path, wanted: Requirements, python: Python, report: Reporter) -> None:
    """Test an installation: a locked one file by file, any other by importing the server.

    uv has checked every byte of the locked set, so that all its files being there says more than
    an import, which would double the time of an installation.
    """
    if wanted.is_locked:
        check_locked(python)
    else:
        check_imports(root, lambda _line: report.still())


def _ensure_python(root: Path, uv: Path, lock: int, report: Reporter) -> Python:
    """Return the environment's Python, making the environment where none runs."""
    python = probe_python(root)
    if python is not None:
        if python.is_supported:
            return python
        raise ProvisionError(
            "venv",
            "`{}` has Python {}.{}, vllm-mlx needs {}.{} to {}.{}".format(
                root, *python.version, *OLDEST_PYTHON, *NEWEST_PYTHON
            ),
            hint=f"move `{root}` away and try again",
        )
    failure = None
    for request in _python_requests(root):
        report.say("making a virtual environment")
        command = [
            uv,
            "venv",
            "--quiet",
            "--allow-existing",
            "--no-project",
            "--python",
            request,
            root,
        ]
        try:
            run_step(
                "venv",
                command,
                directory=root.parent,
                on_line=report.uv_line,
                keep_open=(lock,),
            )
        except ProvisionError as error:
            failure = failure or error
            continue
        python = probe_python(root)
        if python is not None and python.is_supported:
            return python
    raise failure or ProvisionError(
        "venv", f"uv made `{root}`, yet its Python does not run", hint=f"remove `{root}`"
    )


def _python_requests(root: Path) -> list[str]:
    """Return what to ask uv for, best first.

    The former minor version leads: packages that CAR put there are in a folder of its name.
    """
    former = former_python(root)
    requests = [f"cpython=={former}.*"] if former else []
    requests.append(_PYTHON_RANGE)
    if sys.platform == "darwin":
        requests.append(_NATIVE_MAC_PYTHON)
    return requests


def _keep_former(root: Path, former: Marker | None) -> None:
    """Put the former mark back where a failed upgrade changed nothing."""
    if former is None or former.state != "complete":
        return
    binary = server_binary(root)
    if not binary.is_file() or installed_version(binary) != former.version:
        return
    try:
        check_imports(root)
    except ProvisionError:
        return
    write_marker(root, former)


def _mark(root: Path, marker: Marker) -> None:
    try:
        write_marker(root, marker)
    except OSError as error:
        raise ProvisionError(
            "mark", str(error), hint=f"make `{root}` writable for you and free some disk space"
        ) from error
