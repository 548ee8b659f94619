"""What comes before the server is spawned: the runtime, the model and room in memory."""

import threading
from pathlib import Path

from langchain_car_vllm.endpoint import Parsers, Serving
from langchain_car_vllm.environment import inherited
from langchain_car_vllm.errors import (
    ModelDownloadError,
    ServerStartError,
    UnknownModelError,
)
from langchain_car_vllm.models import find_snapshot, read_model_facts
from langchain_car_vllm.models.compatibility import facts_for_version
from langchain_car_vllm.models.download import (
    check_may_download,
    diagnose_download,
    download_command,
    measure_download,
    no_model,
)
from langchain_car_vllm.models.remote_code import is_trusted
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.models.snapshot import served_source
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import (
    VllmRuntime,
    ensure_runtime,
    installed_version,
    interpreter_of,
)
from langchain_car_vllm.runtime.metal import learn_working_set
from langchain_car_vllm.runtime.versions import is_at_least
from langchain_car_vllm.server.child_environment import download_environment
from langchain_car_vllm.server.command import Launch, launch_for
from langchain_car_vllm.server.memory import Memory, budget_bytes
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.child import Child
from langchain_car_vllm.server.supervisor.context import Stall, SupervisorContext

_GB = 1e9
# The first version that works here, and the first one after it that is known not to.
_BATCHING_MLX_VLM = ((0, 6, 5), (0, 6, 16))


def check_model_can_be_had(spec: ServerSpec) -> None:
    """Refuse a model that is not here and may not be fetched, before anything is installed.

    Raises:
        UnknownModelError: Its directory is gone.
        UnservableModelError: The server cannot load what is there.
        ModelDownloadError: It may not be downloaded.
    """
    trust = is_trusted(spec.server_args)
    snapshot = find_snapshot(spec.source, spec.revision, trust=trust)
    if snapshot is not None:
        check_servable(snapshot, spec.served_name, trust=trust)
        return
    if spec.source.startswith("/"):
        raise UnknownModelError(spec.served_name, f"`{spec.source}` holds no `config.json`")
    check_may_download(spec.source, auto_pull=spec.auto_pull)


def install_runtime(context: SupervisorContext) -> VllmRuntime:
    """Find the runtime or install it, as the stage that this is.

    Raises:
        RuntimeProvisioningError: There is none and none can be had.
    """
    context.update(phase="install", detail="")
    return usable_runtime(context)


def usable_runtime(context: SupervisorContext) -> VllmRuntime:
    """Return the runtime once nobody changes it, in a thread: the supervisor stays responsive.

    Raises:
        RuntimeProvisioningError: There is none and none can be had.
    """
    outcome: list[VllmRuntime | BaseException] = []
    latest: list[Progress] = []

    def work() -> None:
        try:
            auto_install = context.spec.auto_install
            runtime = ensure_runtime(auto_install=auto_install, on_progress=latest.append)
            learn_working_set(runtime.server)
            outcome.append(runtime)
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(context.policy.start_tick)  # what is there is found sooner
    while not outcome:
        context.pause(context.policy.start_tick)
        if latest:
            news = latest[-1]
            latest.clear()
            context.show(news.detail, news.done, news.total)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def fetch_model(context: SupervisorContext, runtime: VllmRuntime) -> Launch:
    """Have the model on the disk and find out how it wants to be served.

    Raises:
        ModelDownloadError: It is not here and cannot be had.
    """
    spec = context.spec
    context.update(
        phase="download",
        detail="",
        done=None,
        total=None,
        binary=str(runtime.server),
        serving=Serving(version=runtime.version),
    )
    trust = is_trusted(spec.server_args)
    snapshot = find_snapshot(spec.source, spec.revision, trust=trust) or _download(context, runtime)
    check_servable(snapshot, spec.served_name, trust=trust)
    model = served_source(snapshot, spec.source, spec.revision)
    budget = budget_bytes()
    facts = facts_for_version(
        read_model_facts(snapshot, spec.served_name, trust=trust), runtime.version
    )
    if spec.embeddings:
        return Launch(
            model,
            offline=True,
            serving=Serving(version=runtime.version, engine="simple", parsers=Parsers()),
            memory=Memory(facts.weights_bytes),
        )
    launch = launch_for(
        spec, facts, model, offline=True, budget_bytes=budget, version=runtime.version
    )
    if launch.serving.engine == "batched" and launch.serving.multimodal:
        _check_batching_of_media(runtime)
    return launch


def _check_batching_of_media(runtime: VllmRuntime) -> None:
    """Refuse versions of mlx-vlm whose batches give silently wrong text.

    Raises:
        ServerStartError: The runtime has such a version.
    """
    version = installed_version(runtime.server, "mlx_vlm")
    oldest, newest = _BATCHING_MLX_VLM
    if version is None or (is_at_least(version, oldest) and not is_at_least(version, newest)):
        return
    wanted = "mlx-vlm>={}.{}.{},<{}.{}.{}".format(*oldest, *newest)
    command = f"uv pip install --python {interpreter_of(runtime.server)} '{wanted}'"
    raise ServerStartError(
        f"mlx-vlm {version} gives wrong text when it answers several multimodal requests at once",
        hint=f'leave out `engine="batched"`, or run `{command}`',
    )


def _download(context: SupervisorContext, runtime: VllmRuntime) -> Path:
    """Download the model through the runtime, as long as it makes headway."""
    spec, directory = context.spec, context.directory
    check_model_can_be_had(spec)
    trust = is_trusted(spec.server_args)
    command = download_command(
        directory.path, runtime.server, spec.source, spec.revision, trust=trust
    )
    child = Child(
        directory,
        command.program,
        command.arguments,
        command.complete(download_environment(inherited(), dict(spec.server_env))),
        log=directory.path / "download.log",
    )

    def look() -> object:
        return measure_download(spec.source, spec.revision), child.activity()

    try:
        stall = Stall(context.policy.download_stall, look)
        while (code := child.exit_code()) is None:
            done, total = measure_download(spec.source, spec.revision)
            context.show(f"downloading `{spec.source}`", done, total)
            if stall.is_stalled():
                raise ModelDownloadError(
                    f"the download of `{spec.source}` made no headway for "
                    f"{context.policy.download_stall:g} s",
                    hint="try again, it goes on where it was; CAR_VLLM_MLX_DOWNLOAD_STALL=0 waits "
                    "for ever",
                )
            context.pause(context.policy.download_tick)
    finally:
        child.kill(context.policy)
    if code:
        raise diagnose_download(spec.source, spec.revision, child.log, code)
    snapshot = find_snapshot(spec.source, spec.revision, trust=trust)
    if snapshot is None:
        raise no_model(spec.source)
    return snapshot
