"""`pull`: a model's files."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from langchain_car_vllm.cli.output import ModelArgument, ProgressLine, say
from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models import find_snapshot, parse_model_id
from langchain_car_vllm.models.download import (
    check_may_download,
    diagnose_download,
    download_command,
    measure_download,
)
from langchain_car_vllm.paths import run_root
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import ensure_runtime
from langchain_car_vllm.runtime.commands import clean_environment
from langchain_car_vllm.server.context import Stall
from langchain_car_vllm.server.directory import explain_os_errors
from langchain_car_vllm.server.policy import policy_from_environment
from langchain_car_vllm.server.process import cpu_seconds, kill_group

_TICK = 0.2
_GRACE = 5.0


def pull(
    model: ModelArgument,
    *,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, by default the main branch")
    ] = None,
) -> None:
    """Download a model.

    Prints the directory that holds it; what is there already is not fetched again.
    """
    source = parse_model_id(model).source
    snapshot = find_snapshot(source, revision)
    if snapshot is None:
        check_may_download(source)
        with ProgressLine() as line:
            runtime = ensure_runtime(on_progress=line)
            _download(source, revision, runtime.server, line)
        snapshot = find_snapshot(source, revision)
    else:
        say(f"`{source}` is on this machine")
    if snapshot is None:
        raise ModelDownloadError(
            f"`{source}` was downloaded and holds no model that vllm-mlx can serve",
            hint="choose a repository with `config.json`, a tokenizer and safetensors weights",
        )
    print(snapshot)


def _download(source: str, revision: str | None, binary: Path, line: ProgressLine) -> None:
    """Run the download to its end.

    Raises:
        ModelDownloadError: It failed or stood still; what arrived stays.
    """
    folder = run_root().with_name("pull") / source.replace("/", "--")
    log = folder / "download.log"
    with explain_os_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = download_command(folder, binary, source, revision)
        output = log.open("wb")
    with output:
        child = subprocess.Popen(
            [command.program, *command.arguments],
            env=clean_environment() | command.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with _ended(child):
        _watch(child, source, revision, log, line)
    if child.returncode != 0:
        line.clear()
        say(f"log: {log}")
        raise diagnose_download(source, revision, log, child.returncode)


def _watch(
    child: subprocess.Popen[bytes],
    source: str,
    revision: str | None,
    log: Path,
    line: ProgressLine,
) -> None:
    limit = policy_from_environment().download_stall
    stall = Stall(limit)
    began = time.monotonic()
    while child.poll() is None:
        done, total = measure_download(source, revision)
        line(Progress("download", source, done, total, time.monotonic() - began))
        if stall.is_stalled((done, log.stat().st_size, round(cpu_seconds(child.pid), 1))):
            raise ModelDownloadError(
                f"the download of `{source}` stood still for {limit:g} s",
                hint="try again, it goes on where it was",
            )
        with suppress(subprocess.TimeoutExpired):
            child.wait(_TICK)


@contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """See to it that the child does not outlive the block, Ctrl-C included."""
    try:
        yield
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
            kill_group(child.pid, _GRACE)
            child.wait()
