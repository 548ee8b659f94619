"""What comes before the server is spawned: the runtime, the model and room in memory."""

import threading
import time
from contextlib import suppress

import psutil

from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import VllmRuntime, ensure_runtime
from langchain_car_vllm.runtime.metal_question import learn_working_set
from langchain_car_vllm.server.plan import (
    Plan,
    check_kind,
    check_may_fetch,
    learn_budget,
    plan_for,
)
from langchain_car_vllm.server.process import descendants
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.adapter_stage import fetch_adapter
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.fetch import Download, ask_hub

_END_SECONDS, _END_TICK = 0.5, 0.01


def check_model_can_be_had(spec: ServerSpec) -> None:
    """Refuse a model that is not here and may not be fetched, before anything is installed.

    Raises:
        UnknownModelError: Its directory is gone.
        UnservableModelError: The server cannot load what is there.
        ModelDownloadError: It may not be downloaded.
    """
    snapshot = spec.find_snapshot()
    if snapshot is None:
        check_may_fetch(spec)
        return
    check_servable(snapshot, spec.served_name, trust=spec.trust)
    check_kind(spec, snapshot)


def usable_runtime(context: SupervisorContext) -> VllmRuntime:
    """Return the runtime once nobody changes it, in a thread: the supervisor stays responsive.

    It is the stage `install` only where something is installed or waited for.

    Raises:
        RuntimeProvisioningError: There is none and none can be had.
    """
    worker = _Provisioning(auto_install=context.spec.auto_install)
    worker.start()
    worker.join(context.policy.start_tick)  # what is there is found sooner
    try:
        while not worker.outcome:
            context.pause(context.policy.start_tick)
            if worker.news:
                news = worker.news.pop()
                worker.news.clear()
                if context.state.phase in ("queued", "install"):
                    context.show(news.detail, news.done, news.total, phase="install")
    except BaseException:
        worker.give_up()
        raise
    if isinstance(worker.outcome[0], BaseException):
        raise worker.outcome[0]
    return worker.outcome[0]


class _Provisioning(threading.Thread):
    """The one thread that installs the runtime.

    Attributes:
        news: What it told, the latest last.
        outcome: What it came to, empty before.
    """

    def __init__(self, *, auto_install: bool) -> None:
        super().__init__(daemon=True)
        self.news: list[Progress] = []
        self.outcome: list[VllmRuntime | BaseException] = []
        self._auto_install = auto_install
        self._is_given_up = False

    def run(self) -> None:
        """Find or install it."""
        try:
            runtime = ensure_runtime(auto_install=self._auto_install, on_progress=self._tell)
            learn_working_set(runtime.server)
            self.outcome.append(runtime)
        except BaseException as error:  # noqa: BLE001
            self.outcome.append(error)

    def give_up(self) -> None:
        """End what it runs until it has seen that nobody waits any more, and starts no more."""
        self._is_given_up = True
        give_up_at = time.monotonic() + _END_SECONDS
        while self.is_alive() and time.monotonic() < give_up_at:
            for process in descendants():
                with suppress(psutil.Error):
                    process.kill()
            self.join(_END_TICK)

    def _tell(self, progress: Progress) -> None:
        if self._is_given_up:
            raise StageEnded("user")
        self.news.append(progress)


def check_fits(context: SupervisorContext) -> None:
    """Refuse a model that would not fit, before anything is installed or downloaded.

    The catalog knows some; else the Hub's listing tells. Where it does not answer, the download
    will say why.

    Raises:
        ModelDownloadError: The disk is too small, or the Hub does not give the model.
        InsufficientMemoryError: It needs more memory than all servers may take.
    """
    worker = threading.Thread(target=learn_budget, daemon=True)
    worker.start()
    worker.join(context.policy.start_tick)
    while worker.is_alive():
        context.pause(context.policy.start_tick)
    plan = plan_for(context.spec)
    plan.check_memory()
    if plan.directory is not None:
        return
    context.show(f"asking the Hub about `{context.spec.source}`")
    hub = ask_hub(context)
    if hub is not None:
        plan_for(context.spec, hub).check()


def fetch_model(context: SupervisorContext, runtime: VllmRuntime) -> Plan:
    """Have the model on the disk and find out how it wants to be served.

    Raises:
        ModelDownloadError: It is not here and cannot be had.
        InsufficientMemoryError: It needs more memory than all servers may take.
    """
    spec = context.spec
    context.update(binary=str(runtime.server), serving=Serving(version=runtime.version))
    fetch_adapter(context, runtime)  # it is small: what is wrong with it is found sooner
    if spec.find_snapshot() is None:
        check_model_can_be_had(spec)
        _download(context, runtime)
    plan = plan_for(spec, version=runtime.version, binary=runtime.server)
    plan.check_memory()
    return plan


def _download(context: SupervisorContext, runtime: VllmRuntime) -> None:
    download = Download(context.spec, runtime.server, context.policy, context.directory)
    try:
        while (progress := download.step()) is not None:
            context.show(*progress, phase="download")
            context.pause(context.policy.download_tick)
    finally:
        download.end()
