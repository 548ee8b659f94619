"""The managed virtual environment: its Python, and whether what was installed is all there."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.console_scripts import interpreter_of
from langchain_car_vllm.runtime.import_verdicts import (
    IMPORTS,
    Verdict,
    find_verdict,
    keep_verdict,
    stamp_of,
)
from langchain_car_vllm.runtime.locate import SERVER_BINARY
from langchain_car_vllm.runtime.requirements import locked_versions, normalize_name
from langchain_car_vllm.support.file_presence import entries_of, is_file, is_link
from langchain_car_vllm.support.os_limits import hint_for_limit

# What has wheels of the whole locked set; Apple's own Python is 3.9.
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 14)
# The newest one that the server has been run with.
PROVEN_PYTHON = (3, 13)

_PROBE = """
import json, platform, sys, sysconfig
print(json.dumps({
    "prefix": sys.prefix, "version": sys.version_info[:2], "site": sysconfig.get_path("purelib"),
    "markers": {
        "implementation_name": sys.implementation.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    },
}))
"""
_RECORD_FIELDS = 3


class Python(NamedTuple):
    """A Python that runs.

    Attributes:
        version: Major and minor.
        site: Where its packages are.
        markers: The environment markers that requirements are chosen by.
    """

    version: tuple[int, int]
    site: Path
    markers: dict[str, str]

    @property
    def is_supported(self) -> bool:
        """Whether there are wheels for it; an Intel Python on Apple silicon has none."""
        return OLDEST_PYTHON <= self.version <= NEWEST_PYTHON and not self._is_for_intel_mac

    @property
    def description(self) -> str:
        """What it is, in the words of an error."""
        version = "Python {}.{}".format(*self.version)
        return f"{version}, a Python for Intel" if self._is_for_intel_mac else version

    @property
    def _is_for_intel_mac(self) -> bool:
        machine = (self.markers["sys_platform"], self.markers["platform_machine"])
        return machine == ("darwin", "x86_64")


def python_binary(root: Path) -> Path:
    """Return where an environment has its Python."""
    return root / "bin" / "python"


def server_binary(root: Path) -> Path:
    """Return where an environment has its `vllm-mlx`."""
    return root / "bin" / SERVER_BINARY


def runs_here(root: Path) -> bool:
    """Return whether an environment's `vllm-mlx` runs under its own Python.

    Scripts name it by its whole path: in a folder that was moved or copied, as when a home gets
    another name on a new Mac, they lead to where it was.
    """
    interpreter = interpreter_of(server_binary(root))
    return interpreter is not None and interpreter.parent.resolve() == (root / "bin").resolve()


def probe_python(root: Path) -> Python | None:
    """Return an environment's Python, None where it does not run or belongs to another one.

    Raises:
        ProvisionError: A limit of the system keeps anybody from running it.
    """
    try:
        said = run_step("probe", [python_binary(root), "-I", "-c", _PROBE], directory=root)
        found: Any = json.loads(said.splitlines()[-1])
    except ProvisionError as error:
        if hint := hint_for_limit(error.__cause__):
            raise ProvisionError("probe", error.detail, hint=hint) from error
        return None
    except (ValueError, IndexError):
        return None
    if Path(found["prefix"]).resolve() != root.resolve():
        return None
    major, minor = found["version"]
    return Python((major, minor), Path(found["site"]), found["markers"])


def holds_server(root: Path) -> bool:
    """Return whether an environment's Python runs, and is of the version that it was filled for.

    What it is a link to may have been removed, or upgraded to a version that has other packages.

    Raises:
        ProvisionError: A limit of the system keeps anybody from running it.
    """
    python = probe_python(root)
    return python is not None and bool(entries_of(python.site, "vllm_mlx-*.dist-info"))


def is_known_to_hold_server(root: Path) -> bool:
    """Return what `holds_server` does, which is tried once for each Python that the link leads to.

    Raises:
        ProvisionError: A limit of the system keeps anybody from running it.
    """
    python = python_binary(root)

    def stamp() -> list[Any]:
        real = python.resolve()
        return stamp_of(None, real, [real.parents[1] / "lib"])

    if find_verdict(python, stamp) is not None:
        return True
    if not holds_server(root):
        return False
    keep_verdict(python, Verdict(stamp(), ""))
    return True


def check_locked(python: Python) -> None:
    """Check that the locked set is installed, every version and every file of it.

    Raises:
        ProvisionError: Something is missing; names it.
    """
    records = {_pin(metadata): metadata / "RECORD" for metadata in _metadata_of(python)}
    for name, version in locked_versions(python.markers).items():
        record = records.get((name, version))
        if record is None:
            raise ProvisionError("smoke-test", f"`{name}=={version}` is not installed")
        if missing := _missing_file(python.site, record):
            raise ProvisionError("smoke-test", f"`{name}=={version}` lacks `{missing}`")


def check_imports(root: Path, on_line: Callable[[str | None], None] | None = None) -> None:
    """Check that the server's modules can be imported in an environment.

    Raises:
        ProvisionError: They cannot; carries the end of the traceback.
    """
    command = [python_binary(root), "-I", "-c", IMPORTS]
    run_step("smoke-test", command, directory=root, on_line=on_line)


def check_unused(root: Path) -> None:
    """Check that no process runs from an environment that is about to change.

    Raises:
        ProvisionError: One does; names it.
    """
    inside = tuple({f"{folder}/bin/" for folder in (root, root.resolve())})
    try:
        processes = list(psutil.process_iter(["pid", "cmdline"]))
    except OSError as error:
        raise ProvisionError(
            "in-use",
            f"this system does not show which processes run from `{root}`: {error.strerror}",
            hint=hint_for_limit(error) or "a sandbox may forbid it: install outside of it",
        ) from error
    for process in processes:
        if any(word.startswith(inside) for word in _programs(process)):
            raise ProvisionError(
                "in-use",
                f"process {process.info['pid']} runs from `{root}`",
                hint="stop it with `car-vllm stop --all`, or quit CAR, and try again",
            )


def _programs(process: psutil.Process) -> list[str]:
    """Return what may name the program that a process runs: itself, or a script of it.

    A server of ours has its script in the fifth place.
    """
    words = (process.info["cmdline"] or [])[:5]
    if sys.platform == "darwin":
        # The framework builds of Python put a path of their own in the first place.
        with suppress(psutil.Error):
            words.append(process.environ().get("__PYVENV_LAUNCHER__", ""))
    return words


def broken_packages(python: Python) -> list[str]:
    """Return the installed packages that lack files, as a killed installation leaves them.

    Their metadata is there, so that an installer takes them for installed.
    """
    return sorted(
        _pin(metadata)[0]
        for metadata in _metadata_of(python)
        if not _is_whole(python.site, metadata / "RECORD")
    )


def forget_unreadable(python: Python) -> None:
    """Remove metadata that an installer cannot read, as a killed one leaves it.

    uv 0.13 fails on a folder without METADATA and on half a RECORD, also when it is told to install
    the package anew. Without them it installs over what is there.
    """
    for metadata in _metadata_of(python):
        if not is_file(metadata / "METADATA") or not _rows(metadata / "RECORD"):
            shutil.rmtree(metadata)


def remove_former_packages(root: Path, python: Python) -> None:
    """Remove the packages of other minor versions than that of an environment's Python.

    Nobody can import them, and they take as much room as those that are used.
    """
    used = python.site.parent
    for folder in entries_of(root / "lib", "python3.*") if python.site.is_relative_to(root) else ():
        if folder.name != used.name and not is_link(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _metadata_of(python: Python) -> list[Path]:
    """Return the metadata folders of all packages.

    Raises:
        ProvisionError: The system refuses a look.
    """
    try:
        names = os.listdir(python.site)  # noqa: PTH208
    except OSError as error:
        raise ProvisionError("smoke-test", str(error), hint=hint_for_limit(error)) from error
    return [python.site / name for name in sorted(names) if name.endswith(".dist-info")]


def _pin(metadata: Path) -> tuple[str, str]:
    name, _, version = metadata.name.removesuffix(".dist-info").rpartition("-")
    return normalize_name(name), version


def _missing_file(site: Path, record: Path) -> str | None:
    rows = _rows(record)
    if rows is None:
        return record.name
    # Ten thousand files: `Path` would take longer than the disk.
    return next((row[0] for row in rows if not os.path.exists(f"{site}/{row[0]}")), None)  # noqa: PTH110


def _is_whole(site: Path, record: Path) -> bool:
    """Return whether all files are there, of the sizes that were recorded."""
    rows = _rows(record)
    try:
        return rows is not None and all(
            os.stat(f"{site}/{file}").st_size == int(size)  # noqa: PTH116
            if size.isdigit()
            else os.path.exists(f"{site}/{file}")  # noqa: PTH110
            for file, _hash, size in rows
        )
    except OSError:
        return False


def _rows(record: Path) -> list[list[str]] | None:
    """Return path, hash and size of a package's files, None where that cannot be read."""
    try:
        with record.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return rows if all(len(row) == _RECORD_FIELDS for row in rows) else None


def former_python(root: Path) -> str | None:
    """Return the supported Python version that an environment was made for, such as `3.12`."""
    try:
        lines = (root / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() in {"version", "version_info"}:
            parts = value.strip().split(".")[:2]
            if all(part.isdigit() for part in parts):
                version = tuple(map(int, parts))
                return ".".join(parts) if OLDEST_PYTHON <= version <= NEWEST_PYTHON else None
    return None
