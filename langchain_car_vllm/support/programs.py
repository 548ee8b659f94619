"""Asking a program of the system what it answers at once."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def ask_program(
    command: Sequence[str | Path], seconds: float, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str] | None":
    """Return how a program ended and what it said, None where it does not run or does not end.

    It runs in the root folder: some programs, such as Python, run what lies in the current one.
    """
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            cwd="/",
            env=environment,
        )
    return None
