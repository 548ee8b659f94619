"""Finding a `vllm-mlx` that is installed already, without executing it to learn what it is.

A binary has no `--version` (vllm-mlx up to 0.6.0), and importing it takes seconds, so its version
is read from the metadata of the environment that its first lines name.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from langchain_car_vllm import environment, paths
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.commands import OnLine
from langchain_car_vllm.runtime.import_verdicts import find_verdict, stamp_of, try_import
from langchain_car_vllm.runtime.marker import is_incomplete, read_marker
from langchain_car_vllm.runtime.versions import MINIMUM, is_of_tested_minor
from langchain_car_vllm.support.os_limits import hint_for_limit
from langchain_car_vllm.support.version_numbers import is_at_least

SERVER_BINARY = "vllm-mlx"

_HEAD = 4096
_PACKAGES = ("site-packages", "dist-packages")
# What pip and uv write where the path of Python is too long for a `#!` line or holds a space.
_TRAMPOLINE = "'''exec' "
# What `uv venv --relocatable` makes of it: Python lies beside the script.
_RELOCATABLE = re.compile(r'^"\$\(dirname -- "\$\(realpath -- "\$0"\)"\)"/(.+)$')


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

    PATH leads; then `~/.local/bin`, the folders of `uv tool` (`UV_TOOL_BIN_DIR`, `XDG_BIN_HOME`,
    `UV_TOOL_DIR`, `XDG_DATA_HOME`, `~/.local/share/uv/tools`), the environment that this Python
    runs in, and the managed environment `~/.car/visual-runtime`.
    """
    home = paths.home()
    managed = paths.managed_root()
    on_path = (environment.PATH.read() or "").split(os.pathsep)
    found = [
        *(Path(entry) for entry in on_path if entry),
        *([home / ".local" / "bin"] if home else []),
        *_uv_tool_dirs(home),
        Path(sys.prefix) / "bin",
        *([managed / "bin"] if managed else []),
    ]
    return list(dict.fromkeys(folder.absolute() for folder in found))


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
    Any other must be of a known version of at least 0.3.0. A managed environment whose
    installation was interrupted does not count.
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
        if not os.path.isfile(candidate) or _is_interrupted(candidate):  # noqa: PTH113
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
    if is_managed(runtime.server):
        return ""
    verdict = find_verdict(runtime.server, lambda: _stamp(runtime))
    return verdict.failure if verdict else ""


def is_untried(runtime: VllmRuntime) -> bool:
    """Return whether nobody has imported somebody else's install as it is now."""
    if interpreter_of(runtime.server) is None:
        return False
    return find_verdict(runtime.server, lambda: _stamp(runtime)) is None


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
    return stamp_of(runtime.version, interpreter, [*_sites(runtime.server, interpreter)])


def _tested_managed_runtime() -> VllmRuntime | None:
    root = paths.managed_root()
    marker = read_marker(root) if root else None
    if root is None or marker is None or marker.state != "complete":
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


def _is_interrupted(binary: Path) -> bool:
    """Return whether a binary is that of a managed installation that never came to its end."""
    root = paths.managed_root()
    # A link may lead there, from a folder that is searched sooner.
    return root is not None and is_incomplete(root) and is_managed(binary.resolve())


def installed_version(binary: Path, distribution: str = "vllm_mlx") -> str | None:
    """Return the version of `vllm-mlx` in the environment of a binary, None where unknown.

    Args:
        binary: A console script; it is read, not run.
        distribution: Another one to ask for, with underscores.
    """
    interpreter = interpreter_of(binary)
    if interpreter is None:
        return None
    for site in _sites(binary, interpreter):
        for metadata in _matches(site, f"{distribution}-*.dist-info"):
            return _metadata_version(metadata)
    return None


def _sites(binary: Path, interpreter: Path) -> Iterator[Path]:
    """Yield the folders of the packages of a binary, the interpreter's own version first."""
    own = interpreter.resolve().name
    for prefix in dict.fromkeys((interpreter.parent.parent, binary.absolute().parent.parent)):
        versions = _matches(prefix / "lib", "python*")
        for version in sorted(versions, key=lambda folder: folder.name != own):
            folders = (version / kind for kind in _PACKAGES)
            yield from (folder for folder in folders if os.path.isdir(folder))  # noqa: PTH112


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return what a folder holds by a pattern, sorted; nothing where it may not be read.

    Raises:
        ProvisionError: A limit of the system keeps anybody from looking.
    """
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if fnmatch(name, pattern)]  # noqa: PTH208
    except OSError as error:
        _check_limit(folder, error)
        return []


def _check_limit(path: Path, error: OSError) -> None:
    """Refuse to take what nobody could look at for what is not there: it would be installed."""
    if hint := hint_for_limit(error):
        raise ProvisionError(
            "find", f"`{path}` cannot be read: {error.strerror}", hint=hint
        ) from error


def _metadata_version(metadata: Path) -> str:
    try:
        with (metadata / "METADATA").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("Version:"):
                    return line.removeprefix("Version:").strip()
                if not line.strip():
                    break
    except OSError:
        pass
    return metadata.name.removesuffix(".dist-info").rpartition("-")[2]


def interpreter_of(binary: Path) -> Path | None:
    """Return the Python that a console script runs under, None where its first lines name none.

    Knows plain `#!` lines, `#!/usr/bin/env`, and the `/bin/sh` trampolines that pip and uv write
    for long paths, paths with spaces and relocatable environments.
    """
    try:
        with binary.open("rb") as script:
            lines = script.read(_HEAD).decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        _check_limit(binary, error)
        return None
    if not lines or not lines[0].startswith("#!"):
        return None
    named = _named_interpreter(lines, binary)
    if named is None or not named.is_absolute() or "python" not in named.name.lower():
        return None
    return named if os.path.isfile(named) else None  # noqa: PTH113


def console_script(interpreter: Path, source: str) -> str:
    """Return a script that runs under a Python, whatever its path: it may be long or hold spaces.

    Args:
        interpreter: The Python, which `interpreter_of` then finds.
        source: What it runs.
    """
    words = shlex.quote(str(interpreter))
    return f"#!/bin/sh\n{_TRAMPOLINE}{words} \"$0\" \"$@\"\n' '''\n{source}"


def _named_interpreter(lines: list[str], binary: Path) -> Path | None:
    words = lines[0].removeprefix("#!").split()
    if not words:
        return None
    if Path(words[0]).name == "env":
        found = shutil.which(words[1]) if len(words) > 1 else None
        return Path(found) if found else None
    if Path(words[0]).name == "sh":
        return _trampoline_interpreter(lines[1], binary) if len(lines) > 1 else None
    return Path(words[0])


def _trampoline_interpreter(line: str, binary: Path) -> Path | None:
    if not line.startswith(_TRAMPOLINE):
        return None
    command = line.removeprefix(_TRAMPOLINE)
    if relocatable := _RELOCATABLE.match(command):
        return binary.resolve().parent / _first_word(relocatable[1])
    return Path(_first_word(command))


def _first_word(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return words[0] if words else ""
