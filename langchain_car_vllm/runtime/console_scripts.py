"""Console scripts: the Python that one runs under, and what is installed beside it.

They are read, not run: `vllm-mlx` has no `--version` (up to 0.6.0), and importing it takes seconds,
so its version is read from the metadata of the environment that its first lines name.
"""

import os
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from langchain_car_vllm.environment import find_program
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.support.os_limits import hint_for_limit

_HEAD = 4096
_PACKAGES = ("site-packages", "dist-packages")
# What pip and uv write where the path of Python is too long for a `#!` line or holds a space.
_TRAMPOLINE = "'''exec' "
# What `uv venv --relocatable` makes of it: Python lies beside the script.
_RELOCATABLE = re.compile(r'^"\$\(dirname -- "\$\(realpath -- "\$0"\)"\)"/(.+)$')


def installed_version(binary: Path, distribution: str = "vllm_mlx") -> str | None:
    """Return the version of `vllm-mlx` in the environment of a binary, None where unknown.

    Args:
        binary: A console script; it is read, not run.
        distribution: Another one to ask for, with underscores.
    """
    interpreter = interpreter_of(binary)
    if interpreter is None:
        return None
    for site in package_folders(binary, interpreter):
        for metadata in _matches(site, f"{distribution}-*.dist-info"):
            return _metadata_version(metadata)
    return None


def package_folders(binary: Path, interpreter: Path) -> Iterator[Path]:
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
        found = find_program(words[1]) if len(words) > 1 else None
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
