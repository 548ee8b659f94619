"""Whether installs of `vllm-mlx` that somebody else made can be imported, and Pythons run.

Each is tried once. The verdict is kept in CAR_HOME until the install changes: its version, its
Python, or what lies in its package folder, or the system does. One that failed is tried again after
some minutes: a library of the system, or code elsewhere, may have been mended. A failure that may
be the moment's or the sandbox's, such as want of memory, is kept by nobody but who met it.
"""

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from langchain_car_vllm import paths
from langchain_car_vllm.errors import CarVllmError, ProvisionError
from langchain_car_vllm.runtime.commands import NO_ANSWER, OnLine, run_step
from langchain_car_vllm.support.replaced_files import replaced_file

IMPORTS = "import vllm_mlx.cli, vllm_mlx.server"
"""What a Python runs that is to run the server."""

_FILE = "tested-installs.json"
_MOST_BYTES = 1_000_000
_FAILED_SECONDS = 600.0
_LASTING = ("ImportError", "ModuleNotFoundError", "AttributeError", "NameError", "TypeError")
_PASSING = tuple(
    os.strerror(number)
    for number in (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC),
        *(errno.EPERM, errno.EACCES),
    )
)


class Verdict(NamedTuple):
    """What an import test found.

    Attributes:
        stamp: What the install looked like.
        failure: The end of the traceback, empty where it works.
        at: When that was.
    """

    stamp: list[Any]
    failure: str
    at: float = 0.0

    def is_over(self, *, anew: bool = False) -> bool:
        """Return whether an install that failed is to be tried again.

        Args:
            anew: Whether somebody asks for it. One that did not answer is waited for every few
                minutes all the same.
        """
        is_recent = 0 <= time.time() - self.at < _FAILED_SECONDS
        may_ask = anew and NO_ANSWER not in self.failure
        return bool(self.failure) and (may_ask or not is_recent)


# Where CAR_HOME cannot be written, a verdict still holds for this process.
_known: dict[str, Verdict] = {}


def find_verdict(binary: Path, stamp: Callable[[], list[Any]]) -> Verdict | None:
    """Return the last verdict on an install as it is now, None where it has not been tried."""
    found = [verdicts.get(str(binary)) for verdicts in (_known, _read_verdicts())]
    if not any(found):
        return None
    now = stamp()
    same = [verdict for verdict in found if verdict and verdict.stamp == now]
    return max(same, key=lambda verdict: verdict.at, default=None)


def try_import(binary: Path, interpreter: Path, stamp: list[Any], on_line: OnLine | None) -> None:
    """Import an install's server under its own Python, and keep the verdict."""
    failure = ""
    try:
        # Not in the current folder, whose modules would shadow those of the install.
        run_step(
            *("smoke-test", [interpreter, "-c", IMPORTS]),
            directory=interpreter.parent,
            on_line=on_line,
        )
    except ProvisionError as error:
        failure = error.detail
    keep_verdict(binary, Verdict(stamp, failure, time.time()))


def keep_verdict(binary: Path, verdict: Verdict) -> None:
    """Keep a verdict, for other processes too where it lasts."""
    _known[str(binary)] = verdict
    if not verdict.failure or _is_lasting(verdict.failure):
        with suppress(OSError, CarVllmError):
            _write_verdicts({**_read_verdicts(), str(binary): verdict})


def _is_lasting(failure: str) -> bool:
    """Return whether a failure is the install's own, so that it fails for everybody.

    One that did not answer is not waited for by everybody, either.
    """
    if NO_ANSWER in failure:
        return True
    is_named = any(line.strip().startswith(_LASTING) for line in failure.splitlines())
    return is_named and not any(words in failure for words in _PASSING)


def stamp_of(version: str | None, interpreter: Path, sites: list[Path]) -> list[Any]:
    """Return what changes when packages come, go or are replaced, or another system runs them."""
    places = [interpreter, *sites, *(site / "vllm_mlx" for site in sites)]
    system = os.uname()
    now = [system.release, system.machine, version, str(interpreter)]
    return [*now, *(_changed_at(place) for place in places)]


def _changed_at(place: Path) -> int:
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0


def _file() -> Path:
    return paths.car_home() / "run" / _FILE


def _read_verdicts() -> dict[str, Verdict]:
    try:
        with _file().open(encoding="utf-8") as file:
            found: Any = json.loads(file.read(_MOST_BYTES))
        return {
            binary: Verdict(
                list(entry["stamp"]), str(entry["failure"]), float(entry.get("at", 0.0))
            )
            for binary, entry in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CarVllmError):
        return {}


def _write_verdicts(verdicts: dict[str, Verdict]) -> None:
    file = _file()
    paths.make_private(file.parent)
    kept = {b: v._asdict() for b, v in verdicts.items() if os.path.isfile(b)}  # noqa: PTH113
    with replaced_file(file, many_writers=True) as note:
        note.write(json.dumps(kept).encode())
