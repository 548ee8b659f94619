"""What comes before the server is spawned: the runtime, the model and room in memory."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.errors import (
    InsufficientMemoryError,
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
from langchain_car_vllm.models.snapshot import is_in_hub_cache
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import (
    VllmRuntime,
    ensure_runtime,
    installed_version,
    interpreter_of,
)
from langchain_car_vllm.runtime.versions import is_at_least
from langchain_car_vllm.server.client.stop import clean_up
from langchain_car_vllm.server.command import Launch, launch_for, server_environment
from langchain_car_vllm.server.directory import server_directories
from langchain_car_vllm.server.locks import is_held, opened_lock, release, try_exclusive
from langchain_car_vllm.server.memory import (
    budget_bytes,
    least_recently_used,
    reserving,
)
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import State, ask_to_make_room, read_state
from langchain_car_vllm.server.supervisor.child import Child
from langchain_car_vllm.server.supervisor.context import Context, Ending, Stall

_GB = 1e9
# The first version that works here, and the first one after it that is known not to.
_BATCHING_MLX_VLM = ((0, 6, 5), (0, 6, 16))


def check_model_can_be_had(spec: ServerSpec) -> None:
    """Refuse a model that is not here and may not be fetched, before anything is installed.

    Raises:
        UnknownModelError: Its directory is gone.
        ModelDownloadError: It may not be downloaded.
    """
    if find_snapshot(spec.source, spec.revision) is not None:
        return
    if spec.source.startswith("/"):
        raise UnknownModelError(spec.name, f"`{spec.source}` holds no `config.json`")
    check_may_download(spec.source, auto_pull=spec.auto_pull)


def install_runtime(context: Context) -> VllmRuntime:
    """Find the runtime or install it, as the stage that this is.

    Raises:
        RuntimeProvisioningError: There is none and none can be had.
    """
    context.update(phase="install", detail="")
    return usable_runtime(context)


def usable_runtime(context: Context) -> VllmRuntime:
    """Return the runtime once nobody changes it, in a thread: the supervisor stays responsive.

    Raises:
        RuntimeProvisioningError: There is none and none can be had.
    """
    outcome: list[VllmRuntime | BaseException] = []
    latest: list[Progress] = []

    def work() -> None:
        try:
            auto_install = context.spec.auto_install
            outcome.append(ensure_runtime(auto_install=auto_install, on_progress=latest.append))
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


def fetch_model(context: Context, runtime: VllmRuntime) -> Launch:
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
        version=runtime.version,
    )
    snapshot = find_snapshot(spec.source, spec.revision) or _download(context, runtime)
    by_name = spec.revision is None and is_in_hub_cache(snapshot, spec.source)
    model = spec.source if by_name else str(snapshot)
    budget = budget_bytes()
    facts = facts_for_version(read_model_facts(snapshot, spec.name), runtime.version)
    if spec.embeddings:
        return Launch(
            model,
            offline=True,
            engine="simple",
            needed_bytes=facts.weights_bytes,
            version=runtime.version,
        )
    launch = launch_for(
        spec, facts, model, offline=True, budget_bytes=budget, version=runtime.version
    )
    if launch.engine == "batched" and launch.multimodal:
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


def _download(context: Context, runtime: VllmRuntime) -> Path:
    """Download the model through the runtime, as long as it makes headway."""
    spec, directory = context.spec, context.directory
    check_model_can_be_had(spec)
    command = download_command(directory.path, runtime.server, spec.source, spec.revision)
    child = Child(
        directory,
        command.program,
        command.arguments,
        command.complete(server_environment(spec, os.environ, offline=False)),
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
    snapshot = find_snapshot(spec.source, spec.revision)
    if snapshot is None:
        raise no_model(spec.source)
    return snapshot


def reserve_memory(context: Context, needed: int) -> None:
    """Set memory aside, sending idle servers away and waiting for busy ones.

    Raises:
        InsufficientMemoryError: It can never fit.
        Ending: Nobody waits for this server any more.
    """
    budget = budget_bytes()
    if needed > budget:
        raise InsufficientMemoryError(
            f"`{context.spec.name}` needs {needed / _GB:.1f} GB and all models together may take "
            f"{budget / _GB:.1f} GB",
            hint="choose a smaller model or quantisation, or raise CAR_VLLM_MLX_MEMORY_GB",
        )
    with opened_lock(context.directory.path.parent / "memory.lock") as lock:
        while not try_exclusive(lock):
            context.pause(context.policy.client_tick)
        _end_lost_servers(context)
        while not _reserve(context, needed, budget):
            release(lock)
            _check_somebody_waits(context)
            context.pause(context.policy.memory_tick)
            while not try_exclusive(lock):
                context.pause(context.policy.client_tick)


def _end_lost_servers(context: Context) -> None:
    """Get back the memory of servers whose supervisors were killed."""
    for directory in server_directories():
        state = read_state(directory.state)
        if state is None or state.server is None or directory.key == context.directory.key:
            continue
        with suppress(OSError), opened_lock(directory.supervisor_lock) as descriptor:
            if is_held(descriptor):
                continue
            clean_up(directory, context.policy, "lost")


def _reserve(context: Context, needed: int, budget: int) -> bool:
    others = reserving(context.directory.key)
    free = budget - sum(state.reservation for _, state in others)
    for directory, state in least_recently_used(others):
        if needed <= free:
            break
        if _evict(context, directory.supervisor_lock, state):
            others.remove((directory, state))
            free += state.reservation
    if needed <= free:
        context.update(reservation=needed, blocked_by={}, shortfall=0, detail="")
        return True
    blocked_by = {directory.key: state.reservation for directory, state in others}
    if context.state.blocked_by != blocked_by:
        names = ", ".join(f"`{state.name}`" for _, state in others)
        context.update(
            phase="queued",
            blocked_by=blocked_by,
            shortfall=needed - free,
            detail=f"needs {needed / _GB:.1f} GB, {free / _GB:.1f} GB are free; waits for {names}",
        )
    return False


def _evict(context: Context, supervisor_lock: Path, state: State) -> bool:
    """Ask an idle server to go; False when somebody began to use it in time."""
    give_up_at = time.monotonic() + context.policy.stop_patience
    with opened_lock(supervisor_lock) as descriptor:
        while is_held(descriptor):
            phase = ask_to_make_room(supervisor_lock.with_name("state.json"), state)
            if phase is None or (phase == "ready" and time.monotonic() > give_up_at):
                return False
            context.pause(context.policy.start_tick)
    return True


def _check_somebody_waits(context: Context) -> None:
    if try_exclusive(context.lease):
        raise Ending("idle")
