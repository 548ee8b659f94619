"""Fetching a model in the foreground, for a user who asked for it."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from langchain_car_vllm.models.download import (
    check_may_download,
    diagnose_download,
    download_command,
    measure_download,
)
from langchain_car_vllm.models.snapshot import find_snapshot
from langchain_car_vllm.progress import OnProgress, Progress
from langchain_car_vllm.runtime import VllmRuntime

_TICK = 0.2
_PATIENCE = 5.0


def fetch_model(
    runtime: VllmRuntime, source: str, revision: str | None = None, *, on_progress: OnProgress
) -> Path:
    """Return the local copy of a model, downloading what is missing of it.

    Interrupted, a later call goes on where it was.

    Args:
        runtime: Whose `vllm-mlx` downloads.
        source: The Hub repository, or a directory.
        revision: A branch, tag or commit; None is the default branch.
        on_progress: Told the bytes several times a second.

    Raises:
        ModelDownloadError: It cannot be fetched; says why and what to do.
    """
    if found := find_snapshot(source, revision):
        return found
    check_may_download(source)
    with tempfile.TemporaryDirectory(prefix="car-vllm-") as folder:
        command = download_command(Path(folder), runtime.server, source, revision)
        log = Path(folder) / "download.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [command.program, *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | command.environment,
            )
        try:
            while process.poll() is None:
                done, total = measure_download(source, revision)
                on_progress(Progress("download", "", done, total))
                time.sleep(_TICK)
        finally:
            _end(process)
        found = find_snapshot(source, revision)
        if process.returncode != 0 or found is None:
            raise diagnose_download(source, revision, log, process.returncode)
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
