"""What is fetched before a server can be spawned, by a supervisor or by `car-vllm pull`.

One process at a time downloads a repository; the others wait, show how far it is, and take over
where it ends early.
"""

import sys
import time
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.models.download import (
    announced_commit,
    check_may_download,
    download_command,
    measure_download,
)
from langchain_car_vllm.models.download_diagnosis import (
    Task,
    diagnose_download,
    no_model,
    refusal_error,
    stalled_error,
)
from langchain_car_vllm.models.hub_account import absolute_folders
from langchain_car_vllm.models.hub_listing import HubListing, read_listing, read_refusal
from langchain_car_vllm.paths import run_root
from langchain_car_vllm.runtime.console_scripts import console_script
from langchain_car_vllm.server.child_environment import download_environment
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.interpreter import import_path
from langchain_car_vllm.server.locks import close_lock, open_lock, try_exclusive
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.child import Child, install_launcher
from langchain_car_vllm.server.supervisor.context import SupervisorContext
from langchain_car_vllm.support.stall import Stall

_ASK = "from langchain_car_vllm.models.hub import main\nmain()\n"
_ASK_SECONDS = 25.0


class DownloadProgress(NamedTuple):
    """How far a download is.

    Attributes:
        detail: Who downloads what.
        done: Bytes on the disk.
        total: Bytes in all, None until they are known.
    """

    detail: str
    done: int
    total: int | None


class Download:
    """A model's way to the disk, one step at a time; whoever drives it decides how to wait.

    Args:
        spec: What to download.
        binary: The runtime's `vllm-mlx`.
        policy: How long to wait for a sign of life.
        directory: Where the download itself runs and logs; by default a folder of the repository's.
        update: Whether the Hub is asked for a newer commit although a copy is complete.

    Attributes:
        log: What the download itself wrote.

    Raises:
        StateDirectoryError: Its folder cannot be made or written to.
    """

    def __init__(
        self,
        spec: ServerSpec,
        binary: Path,
        policy: Policy,
        directory: ServerDirectory | None = None,
        *,
        update: bool = False,
    ) -> None:
        self._update = update
        self._task: Task = "download"
        self._commit: str | None = None
        self._spec, self._binary, self._policy = spec, binary, policy
        folder = run_root().with_name("pull") / spec.source.replace("/", "--")
        shared = ServerDirectory(folder)
        shared.create()
        self._directory = directory or shared
        self.log = self._directory.path / "download.log"
        self._child: Child | None = None
        self._is_ours = False
        with explain_os_errors(folder):
            self._lock: int | None = open_lock(shared.supervisor_lock)
        self._stall = Stall(policy.download_stall, self._signs_of_life)

    def step(self) -> DownloadProgress | None:
        """Return how far it is, None once the model is complete.

        Raises:
            ModelDownloadError: It failed or made no progress; what arrived stays.
        """
        source, revision = self._spec.source, self._spec.revision
        if not self._is_ours and not self._begin():
            return None
        code = self._child.exit_code() if self._child else None
        if code is not None:
            if code:
                raise diagnose_download(source, revision, self.log, code, task=self._task)
            if self.snapshot is None:
                raise no_model(source)
            return None
        if self._stall.is_stalled():
            raise stalled_error(f"`{source}`", self._policy.download_stall)
        who = "downloading" if self._is_ours else "another process is downloading"
        return DownloadProgress(f"{who} `{source}`", *self._measure())

    @property
    def snapshot(self) -> Path | None:
        """The complete copy, None before it is one."""
        return self._spec.find_snapshot()

    def end(self) -> None:
        """End the download if it runs, and let others go on with it."""
        if self._child is not None:
            self._child.kill(self._policy)
            self._child = None
        if self._lock is not None:
            close_lock(self._lock)
            self._lock = None

    def _begin(self) -> bool:
        """Start the download if nobody else has it in hand; False where the model is complete."""
        if self._lock is None or not try_exclusive(self._lock):
            # Somebody may have suspended the one who downloads, though not his child.
            return self._update or self.snapshot is None
        is_here = self.snapshot is not None
        if is_here and not self._update:
            return False
        self._is_ours = True
        self._task = "update" if is_here else "download"
        check_may_download(
            self._spec.source,
            auto_pull=self._spec.auto_pull,
            purpose="update" if is_here else "model",
        )
        self._child = self._spawn()
        self._stall = Stall(self._policy.download_stall, self._signs_of_life)
        return True

    def _spawn(self) -> Child:
        directory, spec = self._directory, self._spec
        with explain_os_errors(directory.path):
            install_launcher(directory)
            command = download_command(
                directory.path,
                self._binary,
                spec.source,
                spec.revision,
                trust=spec.trust,
                update=self._update,
            )
            environment = inherited_environment() | absolute_folders(inherited_environment())
            added = dict(spec.server_env)
            return Child(
                directory,
                command.program,
                command.arguments,
                command.complete(download_environment(environment, added)),
                log=self.log,
            )

    def _measure(self) -> tuple[int, int | None]:
        if self._update and self._child is not None and self._commit is None:
            self._commit = announced_commit(self.log)
        return measure_download(self._spec.source, self._commit or self._spec.revision)

    def _signs_of_life(self) -> object:
        return self._measure(), self._child.activity() if self._child else None


def ask_hub(context: SupervisorContext) -> HubListing | None:
    """Return what the Hub says of the model, None where it says nothing.

    A child process asks: the libraries of macOS that know its proxies and certificates must not be
    used by a process that forked without a new program, as a supervisor did.

    Raises:
        ModelDownloadError: The Hub itself says that it cannot be had, or is none.
        UntrustedCodeError: It brings code that nobody trusts.
    """
    spec, directory = context.spec, context.directory
    script = directory.path / "ask_hub.py"
    script.write_text(console_script(Path(sys.executable), _ASK), encoding="utf-8")
    environment = download_environment(inherited_environment(), dict(spec.server_env))
    log = directory.path / "hub.log"
    child = Child(
        directory,
        script,
        (spec.source, spec.revision or "", "trusted" if spec.trust else ""),
        environment | import_path(),
        log=log,
    )
    try:
        give_up_at = time.monotonic() + _ASK_SECONDS
        while child.exit_code() is None and time.monotonic() < give_up_at:
            context.pause(context.policy.start_tick)
        said = log.read_text(encoding="utf-8", errors="replace")
        if (verdict := read_refusal(said)) is not None:
            raise refusal_error(spec.source, spec.revision, verdict)
        return read_listing(said)
    finally:
        child.kill(context.policy)
