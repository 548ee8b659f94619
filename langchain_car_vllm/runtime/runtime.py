"""Making sure that there is a usable `vllm-mlx`."""

import logging
from functools import cache
from pathlib import Path

from langchain_car_vllm.environment import CAR_VLLM_MLX_AUTO_INSTALL
from langchain_car_vllm.progress import OnProgress
from langchain_car_vllm.runtime.console_scripts import installed_version
from langchain_car_vllm.runtime.locate import (
    VllmRuntime,
    binary_passed_over,
    failed_installs,
    is_managed,
    is_untried,
    overriding_binary,
    runtime_to_launch,
    try_install,
)
from langchain_car_vllm.runtime.provision import (
    check_executable,
    is_proven,
    prove,
    provision,
    upgrade,
)
from langchain_car_vllm.runtime.reporter import Reporter
from langchain_car_vllm.runtime.versions import warn_about

log = logging.getLogger(__name__)


def ensure_runtime(
    *, auto_install: bool = True, on_progress: OnProgress | None = None
) -> VllmRuntime:
    """Return a usable `vllm-mlx`, installing one with uv if there is none.

    An existing install that can be imported wins (see `binary_to_launch`). Otherwise it goes into
    `~/.car/visual-runtime`, which CAR shares: a hash-locked set where this package makes the
    environment, only `vllm-mlx>=0.6,<0.7` where CAR made it, or what `CAR_VLLM_MLX_SPEC` says.
    Blocks until done; safe to be called by several processes and to be killed. An install below
    0.6.0 is used, and what it lacks is logged once.

    Args:
        auto_install: Whether it may be installed; `CAR_VLLM_MLX_AUTO_INSTALL=0` forbids it too.
        on_progress: Told of each step, and twice a second in between. An exception that it raises
            ends the installation and passes through; a later call goes on.

    Raises:
        UnsupportedPlatformError: `vllm-mlx` has no wheels for this machine.
        RuntimeMissingError: There is none, and installing is turned off.
        UvMissingError: There is no `uv` to install with.
        ProvisionError: A step failed; names it and carries uv's own last words.
        NotFoundAfterInstallError: The installation went through without leaving a binary.
    """
    found = _found_runtime(on_progress)
    if found is None:
        found = _provide(auto_install=auto_install, on_progress=on_progress)
    warn_about(found.version, found.server)
    warn_about_what_is_passed_over()
    return found


@cache
def warn_about_what_is_passed_over() -> None:
    """Log once per process that the install which is found first is not used."""
    if passed := binary_passed_over():
        log.warning("`%s` is not used: it %s", passed.binary, passed.reason)


def install_runtime(*, on_progress: OnProgress | None = None) -> VllmRuntime:
    """Do what `ensure_runtime` does, for a user who asked for it: no setting forbids it.

    Args:
        on_progress: As for `ensure_runtime`.

    Raises:
        RuntimeProvisioningError: As for `ensure_runtime`.
    """
    return _found_runtime(on_progress, anew=True) or _with_version(provision(on_progress))


def upgrade_runtime(*, on_progress: OnProgress | None = None) -> VllmRuntime:
    """Bring the managed environment to the locked set, or to `CAR_VLLM_MLX_SPEC`.

    Args:
        on_progress: As for `ensure_runtime`.

    Raises:
        RuntimeProvisioningError: As for `ensure_runtime`; a former install that still works stays.
    """
    return _with_version(upgrade(on_progress))


def retry_installs() -> None:
    """Have what could not be imported tried again, for a user who asks what is wrong."""
    _retry_installs(Reporter(None), anew=True)


def _retry_installs(report: Reporter, *, anew: bool) -> None:
    for runtime in [] if overriding_binary() else failed_installs(anew=anew):
        _try_install(runtime, report)


def _try_install(runtime: VllmRuntime, report: Reporter) -> None:
    report.say(f"testing `{runtime.server}`")
    try_install(runtime, lambda _line: report.still())


def _found_runtime(on_progress: OnProgress | None, *, anew: bool = False) -> VllmRuntime | None:
    """Return what is there and works, None where something is to be installed or mended.

    What was installed before its disk was mounted so that no program runs there is refused.
    """
    report = Reporter(on_progress)
    _retry_installs(report, anew=anew)
    found = _importable_runtime(report)
    if found is not None and is_managed(found.server):
        check_executable(found.server)
    return found if found is not None and is_proven(found.server) else None


def _importable_runtime(report: Reporter) -> VllmRuntime | None:
    """Return what to launch, once each install of somebody else's before it has been imported."""
    while (found := runtime_to_launch()) is not None and found.server != overriding_binary():
        if is_managed(found.server) or not is_untried(found):
            break
        _try_install(found, report)
    return found


def _provide(*, auto_install: bool, on_progress: OnProgress | None) -> VllmRuntime:
    setting = CAR_VLLM_MLX_AUTO_INSTALL
    if not setting.read():
        return _with_version(prove(on_progress, reason=f"{setting.name}={setting.text()}"))
    if not auto_install:
        return _with_version(prove(on_progress, reason="auto_install=False"))
    return _with_version(provision(on_progress))


def _with_version(binary: Path) -> VllmRuntime:
    return VllmRuntime(binary, installed_version(binary))
