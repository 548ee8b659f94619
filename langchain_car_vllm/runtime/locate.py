"""Finding a `vllm-mlx` that is installed already, and choosing the one that servers run."""

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from langchain_car_vllm import environment, paths
from langchain_car_vllm.runtime.commands import OnLine
from langchain_car_vllm.runtime.console_scripts import (
    installed_version,
    interpreter_of,
    package_folders,
)
from langchain_car_vllm.runtime.environment_folder import find_runtime_exposure
from langchain_car_vllm.runtime.import_verdicts import Verdict, find_verdict, stamp_of, try_import
from langchain_car_vllm.runtime.marker import is_incomplete, read_marker
from langchain_car_vllm.runtime.versions import MINIMUM, is_of_tested_minor
from langchain_car_vllm.support.version_numbers import is_at_least

SERVER_BINARY = "vllm-mlx"


class VllmRuntime(NamedTuple):
    """A `vllm-mlx` that can be used.

    Attributes:
        server: Absolute path of the binary, links resolved.
        version: Its version, None where `CAR_VLLM_MLX_BIN` names something without metadata.
    """

    server: Path
    version: str | None


def search_dirs() -> list[Path]:
    """Return the folders that are searched for `vllm-mlx`, first match wins, without duplicates.

    Only those count that are named from the root on.
    PATH leads; then `~/.local/bin`, the folders of `uv tool` (`UV_TOOL_BIN_DIR`, `XDG_BIN_HOME`,
    `UV_TOOL_DIR`, `XDG_DATA_HOME`, `~/.local/share/uv/tools`), the environment that this Python
    runs in, and the managed environment `~/.car/visual-runtime`.
    """
    home = paths.home()
    managed = paths.managed_root()
    found = [
        *map(Path, environment.program_folders()),
        *([home / ".local" / "bin"] if home else []),
        *_uv_tool_dirs(home),
        Path(sys.prefix) / "bin",
        *([managed / "bin"] if managed else []),
    ]
    return list(dict.fromkeys(folder for folder in found if folder.is_absolute()))


def _uv_tool_dirs(home: Path | None) -> Iterator[Path]:
    """Yield where `uv tool install vllm-mlx` puts links and environments, by uv's own rules."""
    for variable in (environment.UV_TOOL_BIN_DIR, environment.XDG_BIN_HOME):
        if value := variable.read():
            yield Path(value)
    tool = Path(SERVER_BINARY) / "bin"
    if value := environment.UV_TOOL_DIR.read():
        yield Path(value) / tool
    if value := environment.XDG_DATA_HOME.read():
        yield Path(value) / "uv" / "tools" / tool
    if home:
        yield home / ".local" / "share" / "uv" / "tools" / tool


def resolve_existing() -> Path | None:
    """Return the `vllm-mlx` to use, as an absolute path with links resolved, None if there is none.

    `CAR_VLLM_MLX_BIN` is used as it is, whatever its version, and ignored where it is not a file.
    Any other must be of a known version of at least 0.3.0. A managed environment does not count
    whose installation was interrupted, or that others may put code into.
    """
    found = _existing_runtime()
    return found.server if found else None


def _existing_runtime() -> VllmRuntime | None:
    if override := overriding_binary():
        return VllmRuntime(override, installed_version(override))
    return next(_usable_runtimes(), None)


def _usable_runtimes() -> Iterator[VllmRuntime]:
    for folder in search_dirs():
        candidate = folder / SERVER_BINARY
        if not os.path.isfile(candidate) or _is_unusable(candidate):  # noqa: PTH113
            continue
        version = installed_version(candidate)
        if version is not None and is_at_least(version, MINIMUM):
            yield VllmRuntime(candidate.resolve(), version)


def binary_to_launch() -> Path | None:
    """Return the `vllm-mlx` that servers run, None if there is none.

    That is what `resolve_existing` finds, with two exceptions. One that was tried and cannot be
    imported is passed over. So is one of an older minor version than the tested one where there is
    a complete managed install that is not: an old one on PATH would win forever.
    """
    found = runtime_to_launch()
    return found.server if found else None


def runtime_to_launch() -> VllmRuntime | None:
    """Return what `binary_to_launch` finds, with its version."""
    if overriding_binary():
        return _existing_runtime()
    found = next((runtime for runtime in _usable_runtimes() if not failure_of(runtime)), None)
    if found is None or is_of_tested_minor(found.version):
        return found
    return _tested_managed_runtime() or found


class PassedOver(NamedTuple):
    """A `vllm-mlx` that is found first yet not launched.

    Attributes:
        binary: Its console script.
        reason: Why, to follow its name in a sentence.
    """

    binary: Path
    reason: str


def binary_passed_over() -> PassedOver | None:
    """Return the `vllm-mlx` that is found first yet not launched, None if there is none."""
    found, used = _existing_runtime(), runtime_to_launch()
    if found is None or found == used:
        return None
    if failure := failure_of(found):
        return PassedOver(found.server, f"cannot be imported: {failure}")
    newer = f"the {used.version} in `{used.server}`" if used else "the tested one"
    return PassedOver(found.server, f"is vllm-mlx {found.version}, older than {newer}")


def failure_of(runtime: VllmRuntime) -> str:
    """Return why somebody else's install cannot be imported; empty if it can, or was not tried."""
    verdict = _verdict_on(runtime)
    return verdict.failure if verdict else ""


def failed_installs(*, anew: bool = False) -> list[VllmRuntime]:
    """Return the installs of somebody else's that are to be tried again, as they are found.

    Args:
        anew: Whether somebody asks for it; otherwise each is left alone for some minutes.
    """
    found = [(runtime, _verdict_on(runtime)) for runtime in _usable_runtimes()]
    return [runtime for runtime, verdict in found if verdict and verdict.is_over(anew=anew)]


def _verdict_on(runtime: VllmRuntime) -> Verdict | None:
    if is_managed(runtime.server):
        return None
    return find_verdict(runtime.server, lambda: _stamp(runtime))


def is_untried(runtime: VllmRuntime) -> bool:
    """Return whether nobody has imported somebody else's install as it is now."""
    if interpreter_of(runtime.server) is None:
        return False
    return _verdict_on(runtime) is None


def try_install(runtime: VllmRuntime, on_line: OnLine | None = None) -> None:
    """Import somebody else's install under its own Python, and keep the verdict."""
    interpreter = interpreter_of(runtime.server)
    if interpreter is not None:
        try_import(runtime.server, interpreter, _stamp(runtime), on_line)


def is_managed(binary: Path) -> bool:
    """Return whether a binary, links resolved, is that of the managed environment."""
    root = paths.managed_root()
    return root is not None and binary == (root / "bin" / SERVER_BINARY).resolve()


def _stamp(runtime: VllmRuntime) -> list[Any]:
    interpreter = interpreter_of(runtime.server)
    if interpreter is None:
        return []
    return stamp_of(runtime.version, interpreter, [*package_folders(runtime.server, interpreter)])


def _tested_managed_runtime() -> VllmRuntime | None:
    root = paths.managed_root()
    marker = read_marker(root) if root else None
    if root is None or marker is None or marker.state != "complete":
        return None
    if find_runtime_exposure(root):
        return None
    binary = root / "bin" / SERVER_BINARY
    if not os.path.isfile(binary):  # noqa: PTH113
        return None
    version = installed_version(binary)
    return VllmRuntime(binary.resolve(), version) if is_of_tested_minor(version) else None


def overriding_binary() -> Path | None:
    """Return the real path of the binary that `CAR_VLLM_MLX_BIN` names, None if it names none.

    Each request asks for it.
    """
    override = environment.CAR_VLLM_MLX_BIN.read()
    if override is None:
        return None
    try:
        found = os.stat(override)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    if not S_ISREG(found.st_mode):
        return None
    return _resolved(override, found.st_dev, found.st_ino, found.st_ctime_ns)


@lru_cache(maxsize=64)
def _resolved(path: str, *_file: int) -> Path:
    """Remember where a path leads while the same file is there."""
    return Path(path).resolve()


def _is_unusable(binary: Path) -> bool:
    """Return whether a managed install is unfinished, or others may put code into it."""
    root = paths.managed_root()
    # A link may lead there, from a folder that is searched sooner.
    if root is None or not is_managed(binary.resolve()):
        return False
    return is_incomplete(root) or find_runtime_exposure(root) is not None
