"""The managed virtual environment: its Python, and whether what was installed is all there."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.commands import run_step
from langchain_car_vllm.runtime.locate import SERVER_BINARY
from langchain_car_vllm.runtime.requirements import locked_versions, normalized

# What vllm-mlx 0.6.0 and its wheels support; Apple's own Python is 3.9.
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 13)

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
_IMPORTS = "import vllm_mlx.cli, vllm_mlx.server"


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
        """Whether vllm-mlx has wheels for it; an Intel Python on Apple silicon has none."""
        fits = OLDEST_PYTHON <= self.version <= NEWEST_PYTHON
        machine = (self.markers["sys_platform"], self.markers["platform_machine"])
        return fits and machine != ("darwin", "x86_64")


def python_binary(root: Path) -> Path:
    """Return where an environment has its Python."""
    return root / "bin" / "python"


def server_binary(root: Path) -> Path:
    """Return where an environment has its `vllm-mlx`."""
    return root / "bin" / SERVER_BINARY


def probe_python(root: Path) -> Python | None:
    """Return an environment's Python, None where it does not run or belongs to another one."""
    try:
        said = run_step("probe", [python_binary(root), "-I", "-c", _PROBE], directory=root)
        found: Any = json.loads(said.splitlines()[-1])
    except (ProvisionError, ValueError, IndexError):
        return None
    if Path(found["prefix"]).resolve() != root.resolve():
        return None
    major, minor = found["version"]
    return Python((major, minor), Path(found["site"]), found["markers"])


def check_locked(python: Python) -> None:
    """Check that the locked set is installed, every version and every file of it.

    Raises:
        ProvisionError: Something is missing; names it.
    """
    records = {_pin(metadata): metadata / "RECORD" for metadata in python.site.glob("*.dist-info")}
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
    command = [python_binary(root), "-I", "-c", _IMPORTS]
    run_step("smoke-test", command, directory=root, on_line=on_line)


def check_unused(root: Path) -> None:
    """Check that no process runs from an environment that is about to change.

    Raises:
        ProvisionError: One does; names it.
    """
    inside = f"{root}/"
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        # The program itself, and the script where the program is a Python.
        if any(word.startswith(inside) for word in words[:3]):
            raise ProvisionError(
                "in-use",
                f"process {process.info['pid']} runs from `{root}`",
                hint="stop it with `car-vllm stop --all`, or end CAR, and try again",
            )


def _pin(metadata: Path) -> tuple[str, str]:
    name, _, version = metadata.name.removesuffix(".dist-info").rpartition("-")
    return normalized(name), version


def _missing_file(site: Path, record: Path) -> str | None:
    try:
        with record.open(encoding="utf-8", newline="") as lines:
            files = [row[0] for row in csv.reader(lines) if row]
    except OSError:
        return record.name
    # Ten thousand files: `Path` would take longer than the disk.
    return next((file for file in files if not os.path.exists(f"{site}/{file}")), None)  # noqa: PTH110


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
