"""The real command line in processes of its own, on a fake installation."""

import io
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from faults.support import (
    FAST,
    PATIENCE,
    Fake,
    eventually,
    processes_of,
    run_in_this_process,
)

from langchain_car_vllm.cli.app import main
from langchain_car_vllm.server import running_servers, stop_server


class Cli(Protocol):
    """Runs `car-vllm` to its end."""

    def __call__(
        self, *arguments: str, given: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]: ...


def command(*arguments: str) -> list[str]:
    """Return the command line of `car-vllm`."""
    return [sys.executable, "-c", "from langchain_car_vllm.cli import main; main()", *arguments]


def interrupt(process: subprocess.Popen[Any]) -> int:
    """Press Ctrl-C until the process ends, and return its exit code as a shell tells it.

    Python may lose the first one: in the instant before it begins to wait for something. A further
    one may find it ending, which it then does of the signal.
    """
    for number in range(int(PATIENCE)):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(1)
            return 128 - code if number and code < 0 else code
    raise AssertionError("Ctrl-C did not end it")


def runtime_that_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an environment in place whose Python is a script."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    python = folder / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (folder / "vllm-mlx").write_text(f"#!{python}\n")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(folder / "vllm-mlx"))


@pytest.fixture
def cli() -> Cli:
    """`car-vllm`, with what it says captured."""

    def run(
        *arguments: str, given: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
            env=os.environ | environment,
        )

    return run


@pytest.fixture
def cli_here(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The same in this process, which is far quicker, for what starts nothing."""
    log = logging.getLogger("langchain_car_vllm")

    def run(
        *arguments: str, given: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        handlers, level = log.handlers[:], log.level
        with run_in_this_process(*arguments), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(given))
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main()
        log.handlers[:] = handlers
        log.setLevel(level)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The fake installation; afterwards none of its processes may live."""
    monkeypatch.setenv("VLLM_MLX_FAKE", "")
    installation = Fake(tmp_path / "fake")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(installation.binary))
    yield installation
    for directory, _ in running_servers():
        stop_server(directory, policy=FAST)
    try:
        eventually(lambda: not processes_of(tmp_path), "the last process to end", patience=5)
    finally:
        for process in processes_of(tmp_path):
            process.kill()


@pytest.fixture
def cache(home: Path) -> Path:
    """The Hub's folder."""
    return home / ".cache" / "huggingface" / "hub"
