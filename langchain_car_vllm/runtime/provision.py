"""Installing `vllm-mlx` into the managed environment, safe against being killed at any step.

Lock, look again, mark as unfinished, make an environment where no Python runs, install, test, mark
as complete. Killed anywhere, the next run finds the unfinished mark and goes over all of it again.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from langchain_car_vllm import paths
from langchain_car_vllm.errors import ConfigurationError, ProvisionError, RuntimeMissingError
from langchain_car_vllm.progress import OnProgress
from langchain_car_vllm.runtime.console_scripts import installed_version
from langchain_car_vllm.runtime.environment_folder import (
    OF_ITS_OWN,
    check_own_runtime,
    find_stranger,
)
from langchain_car_vllm.runtime.host import Host, check_host, current_host
from langchain_car_vllm.runtime.install_lock import install_lock
from langchain_car_vllm.runtime.install_steps import Work, install
from langchain_car_vllm.runtime.locate import binary_to_launch, is_managed, resolve_existing
from langchain_car_vllm.runtime.marker import Marker, read_marker, write_marker
from langchain_car_vllm.runtime.mounts import ELSEWHERE, is_noexec
from langchain_car_vllm.runtime.reporter import Reporter
from langchain_car_vllm.runtime.requirements import needed_mb, wanted_requirements
from langchain_car_vllm.runtime.uv_binary import find_uv
from langchain_car_vllm.runtime.virtual_environment import check_imports, is_known_to_hold_server
from langchain_car_vllm.support.file_presence import is_present

log = logging.getLogger(__name__)

_MB = 1_000_000
_REMOVAL_PATIENCE = 2.0
"""An installation that was just ended takes a moment to let go."""
_ELSEWHERE = "set CAR_VLLM_MLX_RUNTIME to a folder that you can write to"


def provision(on_progress: OnProgress | None = None, *, host: Host | None = None) -> Path:
    """Return a proven binary, installed into the managed environment if there is none.

    Raises:
        RuntimeProvisioningError: It cannot be installed; nothing half-done is ever used.
    """
    host = host or current_host()
    root = _managed_root()
    report = Reporter(on_progress)
    # What is there needs a test at most: no uv, no disk.
    uv = _prepare(root, host) if binary_to_launch() is None else None
    with _hold_install_lock(root, report) as lock:
        if found := _prove(root, report):
            return found
        work = Work(root, uv or _prepare(root, host), lock, host, report)
        try:
            return install(work)
        except ProvisionError as error:
            if (found := binary_to_launch()) is None:
                raise
            log.warning("`%s` stays in use: %s", found, error)
            return found


def prove(on_progress: OnProgress | None = None, *, reason: str) -> Path:
    """Return a proven binary without installing anything.

    Raises:
        RuntimeMissingError: There is none.
        ProvisionError: It may hold code of others.
    """
    root = _managed_root()
    if binary_to_launch() is None:
        check_own_runtime(root)
        broken = resolve_existing()
        raise RuntimeMissingError(f"{reason}; `{broken}` does not work" if broken else reason)
    report = Reporter(on_progress)
    with _hold_install_lock(root, report):
        if found := _prove(root, report):
            return found
    raise RuntimeMissingError(f"{reason}; the one in `{root}` does not work")


def upgrade(on_progress: OnProgress | None = None) -> Path:
    """Bring the managed environment to the wanted requirements and return its binary.

    Raises:
        RuntimeProvisioningError: It cannot be done; the former install stays in use if it still
            works.
    """
    host = current_host()
    root = _managed_root()
    report = Reporter(on_progress)
    uv = _prepare(root, host)
    with _hold_install_lock(root, report) as lock:
        return install(Work(root, uv, lock, host, report))


def is_proven(binary: Path) -> bool:
    """Return whether a binary need not be tested: not managed, or marked with a Python that runs.

    Raises:
        ProvisionError: A limit of the system keeps anybody from running its Python.
    """
    root = paths.managed_root()
    if root is None or not is_managed(binary):
        return True
    return read_marker(root) is not None and is_known_to_hold_server(root)


def holds_runtime_of_ours(root: Path) -> bool:
    """Return whether this package made the environment, so that it may remove it."""
    marker = read_marker(root)
    return marker is not None and marker.ours


@contextmanager
def runtime_removal(root: Path) -> Iterator[None]:
    """Keep installations off while the managed environment is removed; its lock file goes too.

    Raises:
        ConfigurationError: Another process is installing.
    """
    give_up_at = time.monotonic() + _REMOVAL_PATIENCE

    def refuse() -> None:
        if time.monotonic() > give_up_at:
            raise ConfigurationError(
                "another process is installing `vllm-mlx`", hint="wait until it is done"
            )

    lock = _lock_file(root)
    with install_lock(lock, refuse):
        yield
        lock.unlink(missing_ok=True)


def _managed_root() -> Path:
    root = paths.managed_root()
    if root is None:
        raise ProvisionError(
            "resolve-home",
            "HOME is not set",
            hint="set HOME, or set CAR_HOME to a folder that you can write to",
        )
    return root


def _prepare(root: Path, host: Host) -> Path:
    """Return the uv to install with, once nothing stands in the way.

    Raises:
        RuntimeProvisioningError: Something does; nothing was downloaded.
    """
    check_host(host)
    uv = find_uv()
    if broken := paths.lost_disk(root):
        raise ProvisionError("mkdir", broken, hint=paths.RECONNECT)
    try:
        paths.make_private(root)
        free = shutil.disk_usage(root).free // _MB
    except OSError as error:
        raise ProvisionError("mkdir", str(error), hint=_ELSEWHERE) from error
    if not os.access(root, os.W_OK):
        raise ProvisionError("mkdir", f"`{root}` cannot be written to", hint=_ELSEWHERE)
    check_own_runtime(root)
    if stranger := find_stranger(root):
        raise ProvisionError(
            "mkdir", f"`{root}` holds other files, such as `{stranger}`", hint=OF_ITS_OWN
        )
    check_executable(root)
    needed = _missing_mb(root, host)
    if free < needed:
        raise ProvisionError(
            "disk",
            f"the runtime needs {needed} MB, but `{root}` has {free} MB free",
            hint=_space_hint(needed - free, host),
        )
    return uv


def check_executable(root: Path) -> None:
    """Refuse the managed environment on a disk that lets no program run.

    Raises:
        ProvisionError: It is on one.
    """
    if is_noexec(root):
        raise ProvisionError(
            "mkdir", f"the disk of `{root}` does not let programs run (noexec)", hint=ELSEWHERE
        )


def _space_hint(missing: int, host: Host) -> str:
    hint = f"free {missing} MB and try again, or set CAR_VLLM_MLX_RUNTIME to a folder elsewhere"
    if host.system == "darwin":
        # What APFS would purge on demand is free in the Finder, and not free to programs.
        hint += "; what the Finder calls purgeable does not count"
    return hint


def _missing_mb(root: Path, host: Host) -> int:
    """Return the disk space in MB that the rest of an installation needs at most."""
    former = read_marker(root)
    ours = former.ours if former else not is_present(root / "pyvenv.cfg")
    wanted = wanted_requirements(ours=ours, system=host.system)
    needed = needed_mb(system=host.system, is_locked=wanted.is_locked)
    if former is None:
        return needed
    if former.state == "complete":
        # What a former set shares with the wanted one is not known before uv looks.
        return 0 if former.requirements == wanted.name else needed
    return max(0, needed - paths.folder_size(root) // _MB)


def _hold_install_lock(root: Path, report: Reporter) -> AbstractContextManager[int]:
    def wait() -> None:
        report.say("waiting for another process to install vllm-mlx")

    return install_lock(_lock_file(root), wait)


def _lock_file(root: Path) -> Path:
    return root.with_name(f"{root.name}.lock")


def _prove(root: Path, report: Reporter) -> Path | None:
    """Return a binary that another process finished, or that passes the test now."""
    found = binary_to_launch()
    if found is None or is_proven(found):
        return found
    report.say("testing the installed vllm-mlx")
    try:
        check_imports(root, lambda _line: report.still())
    except ProvisionError as error:
        log.warning("the vllm-mlx in `%s` does not work: %s", root, error.detail)
        return None
    if read_marker(root) is not None:
        return found
    version = installed_version(found) or ""
    with suppress(OSError):  # somebody else's folder: it is tested again next time
        write_marker(root, Marker("complete", ours=False, requirements="found", version=version))
    return found
