"""`pull`: a model's files."""

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from langchain_car_vllm.cli.options import ModelArguments, checked_by, found_for_all
from langchain_car_vllm.cli.output import say
from langchain_car_vllm.errors import ConfigurationError, ModelDownloadError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.models.download import check_may_download
from langchain_car_vllm.models.download_diagnosis import no_model
from langchain_car_vllm.models.remote_code import TRUST
from langchain_car_vllm.models.repository_names import is_repository
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.models.snapshot import check_revision
from langchain_car_vllm.progress import OnProgress, Progress
from langchain_car_vllm.progress.display import Display
from langchain_car_vllm.runtime import ensure_runtime
from langchain_car_vllm.server.policy import policy_from_environment
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.fetch import Download
from langchain_car_vllm.server.wakefulness import Wakefulness


def pull(
    models: ModelArguments,
    *,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Branch, tag or commit, by default the main branch",
            callback=checked_by(check_revision),
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Fetch a newer version from the Hub, if there is one")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Fetch the code that comes with the model, and let it run")
    ] = False,
) -> None:
    """Download models.

    Prints the directory that holds each; what is there already is not fetched again, and with
    `--update` only what has changed.
    """

    def find_source(model: str) -> str:
        source = parse_model_id(model).source
        if update and not is_repository(source):
            raise ConfigurationError(
                f"`{source}` is a directory, so there is nothing to fetch",
                hint="leave `--update` out, or name a repository of the Hub",
            )
        return source

    for _, source in found_for_all(models, find_source):
        _pull(source, revision, update=update, trust_remote_code=trust_remote_code)


def _pull(source: str, revision: str | None, *, update: bool, trust_remote_code: bool) -> None:
    arguments = (TRUST,) if trust_remote_code else ()
    spec = ServerSpec(source, source, revision=revision, server_args=arguments)
    former = snapshot = spec.find_snapshot()
    if snapshot is None or update:
        check_may_download(source, purpose="model" if snapshot is None else "update")
        if snapshot is None:
            check_hub_gives(spec)
        with Wakefulness(), closing(Display(source)) as display:
            runtime = ensure_runtime(on_progress=display)
            _download(spec, runtime.server, display, update=update)
        snapshot = spec.find_snapshot()
        if former is not None and snapshot == former:
            say(f"`{source}` is up to date")
        elif former is not None:
            say(
                f"`{source}` was updated; a server that is running keeps the old version until "
                "it stops"
            )
    else:
        say(f"`{source}` is on this machine")
    if snapshot is None:
        raise no_model(source)
    check_servable(snapshot, source, trust=trust_remote_code)
    print(snapshot)


def check_hub_gives(spec: ServerSpec) -> None:
    """Refuse what the Hub says that it does not give, before anything is installed or started.

    Raises:
        CarVllmError: The model cannot be had; the type tells why.
    """
    # No other command line asks the Hub by itself.
    from langchain_car_vllm.models.hub import find_certain_refusal  # noqa: PLC0415

    refusal = find_certain_refusal(spec.source, spec.revision, trust=spec.trust)
    if refusal is not None:
        raise refusal


def _download(spec: ServerSpec, binary: Path, on_progress: OnProgress, *, update: bool) -> None:
    """Run the download to its end; it ends with this process, however that dies.

    Raises:
        ModelDownloadError: It failed or made no progress; what arrived stays.
    """
    policy = policy_from_environment()
    download = Download(spec, binary, policy, update=update)
    began = time.monotonic()
    on_progress(Progress("download"))
    try:
        while (progress := download.step()) is not None:
            _, done, total = progress
            on_progress(Progress("download", "", done, total, time.monotonic() - began))
            time.sleep(policy.download_tick)
    except ModelDownloadError:
        say(f"log: {download.log}")
        raise
    finally:
        download.end()
