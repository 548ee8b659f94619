"""`pull`: a model's files."""

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from langchain_car_vllm.cli.output import ModelArgument, say
from langchain_car_vllm.display import Display
from langchain_car_vllm.environment import inherited
from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models import find_snapshot, parse_model_id
from langchain_car_vllm.models.download import (
    check_may_download,
    diagnose_download,
    download_command,
    measure_download,
    no_model,
)
from langchain_car_vllm.models.hub_account import absolute_folders
from langchain_car_vllm.models.remote_code import TRUST, is_trusted
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.paths import run_root
from langchain_car_vllm.progress import OnProgress, Progress
from langchain_car_vllm.runtime import install_runtime
from langchain_car_vllm.server.child_environment import download_environment
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.locks import opened_lock, try_exclusive
from langchain_car_vllm.server.policy import Policy, policy_from_environment
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.child import Child, install_launcher
from langchain_car_vllm.server.supervisor.context import Stall


def pull(
    model: ModelArgument,
    *,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, by default the main branch")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Fetch the code that the model brings, and let it run")
    ] = False,
) -> None:
    """Download a model.

    Prints the directory that holds it; what is there already is not fetched again.
    """
    source = parse_model_id(model).source
    arguments = (TRUST,) if trust_remote_code else ()
    spec = ServerSpec(source, source, revision=revision, server_args=arguments)
    snapshot = find_snapshot(source, revision, trust=trust_remote_code)
    if snapshot is None:
        check_may_download(source)
        with closing(Display(source)) as display:
            runtime = install_runtime(on_progress=display)
            _download(spec, runtime.server, display)
        snapshot = find_snapshot(source, revision, trust=trust_remote_code)
    else:
        say(f"`{source}` is on this machine")
    if snapshot is None:
        raise no_model(source)
    check_servable(snapshot, source, trust=trust_remote_code)
    print(snapshot)


def _download(spec: ServerSpec, binary: Path, on_progress: OnProgress) -> None:
    """Run the download to its end; it ends with this process, however that dies.

    Raises:
        ModelDownloadError: It failed or stood still; what arrived stays.
    """
    source, revision = spec.source, spec.revision
    directory = ServerDirectory(run_root().with_name("pull") / source.replace("/", "--"))
    directory.create()
    policy = policy_from_environment()
    with explain_os_errors(directory.path), opened_lock(directory.supervisor_lock) as lock:
        while not try_exclusive(lock):
            on_progress(Progress("download", "", *measure_download(source, revision)))
            time.sleep(policy.download_tick)
        if find_snapshot(source, revision, trust=is_trusted(spec.server_args)) is None:
            _run(directory, spec, binary, policy, on_progress)


def _run(
    directory: ServerDirectory,
    spec: ServerSpec,
    binary: Path,
    policy: Policy,
    on_progress: OnProgress,
) -> None:
    source, revision = spec.source, spec.revision
    with explain_os_errors(directory.path):
        install_launcher(directory)
        trust = is_trusted(spec.server_args)
        command = download_command(directory.path, binary, source, revision, trust=trust)
        environment = inherited() | absolute_folders(inherited())
        child = Child(
            directory,
            command.program,
            command.arguments,
            command.complete(download_environment(environment)),
            log=directory.path / "download.log",
        )
    try:
        _watch(child, spec, policy, on_progress)
    finally:
        child.kill(policy)
    if child.exit_code() != 0:
        say(f"log: {child.log}")
        raise diagnose_download(source, revision, child.log, child.exit_code())


def _watch(child: Child, spec: ServerSpec, policy: Policy, on_progress: OnProgress) -> None:
    def look() -> object:
        return measure_download(spec.source, spec.revision), child.activity()

    stall = Stall(policy.download_stall, look)
    began = time.monotonic()
    while child.exit_code() is None:
        done, total = measure_download(spec.source, spec.revision)
        on_progress(Progress("download", "", done, total, time.monotonic() - began))
        if stall.is_stalled():
            raise ModelDownloadError(
                f"the download of `{spec.source}` stood still for {policy.download_stall:g} s",
                hint="try again, it goes on where it was",
            )
        time.sleep(policy.download_tick)
