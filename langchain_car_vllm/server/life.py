"""One server's life, from the first wish for it to its end.

    queued ──> install ──> download ──> load ──> ready ──> draining ──> stopped
       └──────────┴───────────┴──────────┴─────────┴─── crash, failure, stop ──┘

Only this module assigns the state. Everything runs in the main thread; what blocks is a child
process or the one thread that installs the runtime.
"""

import dataclasses
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from langchain_car_vllm.errors import (
    CarVllmError,
    ServerCrashedError,
    ServerStartError,
    StateDirectoryError,
)
from langchain_car_vllm.models import find_snapshot, read_model_facts
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.runtime import VllmRuntime, ensure_runtime
from langchain_car_vllm.server.backoff import is_spent, recent_crashes, start_time
from langchain_car_vllm.server.child import Child, install_launcher
from langchain_car_vllm.server.clients import ClientRecords
from langchain_car_vllm.server.command import (
    Launch,
    choose_engine,
    serve_arguments,
    server_environment,
)
from langchain_car_vllm.server.diagnosis import diagnose
from langchain_car_vllm.server.directory import LOCAL_DIRECTORY, ServerDirectory
from langchain_car_vllm.server.idle import idle_deadline
from langchain_car_vllm.server.inbox import Inbox
from langchain_car_vllm.server.locks import open_lock, release, try_exclusive
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.port import HeldPort, is_refused
from langchain_car_vllm.server.probe import is_ready
from langchain_car_vllm.server.process import boot_id, host_name, identify, kill_group
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import (
    Reason,
    State,
    decode_error,
    encode_error,
    read_state,
    write_state,
)

_PORT_ATTEMPTS = 3


class _Ending(Exception):  # noqa: N818
    """The life is over, for a reason that is nobody's fault."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Life:
    """The supervisor's one loop.

    Args:
        directory: Of the server key; its `supervisor.lock` is held by this process.
        spec: What to serve.
        policy: How long to wait for what.

    Raises:
        StateDirectoryError: The state was written on another machine, or cannot be written.
    """

    def __init__(self, directory: ServerDirectory, spec: ServerSpec, policy: Policy) -> None:
        self._directory = directory
        self._spec = spec
        self._policy = policy
        self._inbox = Inbox()
        self._lease = open_lock(directory.lease_lock)
        self._child: Child | None = None
        self._port: HeldPort | None = None
        self._written = 0.0
        predecessor = read_state(directory.state)
        self._check_host(predecessor)
        self._clean_up_after(predecessor)
        self._last_error = predecessor.error if predecessor else None
        same_boot = predecessor is not None and predecessor.boot_id == boot_id()
        self._state = State(
            generation=predecessor.generation + 1 if predecessor else 1,
            phase="queued",
            host=host_name(),
            boot_id=boot_id(),
            name=spec.name,
            source=spec.source,
            supervisor=identify(os.getpid(), str(directory.path)),
            crashes=predecessor.crashes if predecessor and same_boot else (),
        )
        self._write()
        self._clients = ClientRecords(directory.clients)
        self._clients.poll(time.monotonic())

    def run(self) -> None:
        """Live until the server is stopped, idle, evicted, dead or could not be started."""
        ending: dict[str, Any] = {"reason": "failed"}
        try:
            self._wait_out_backoff()
            runtime = self._install()
            launch = self._prepare(runtime)
            self._load(runtime, launch)
            self._serve()
        except _Ending as end:
            ending = {"reason": end.reason}
        except CarVllmError as error:
            reason = "crash" if self._state.phase == "ready" else "failed"
            ending = {"reason": reason, "error": encode_error(error)}
        except OSError as error:
            failure = StateDirectoryError(
                self._directory.path, error.strerror or str(error), hint=LOCAL_DIRECTORY
            )
            ending = {"reason": "failed", "error": encode_error(failure)}
        finally:
            self._finish(ending)

    def _check_host(self, predecessor: State | None) -> None:
        if predecessor is not None and predecessor.host != host_name():
            if predecessor.phase == "stopped":
                return
            raise StateDirectoryError(
                self._directory.path,
                f"machine `{predecessor.host}` uses it too",
                hint="set CAR_HOME to a directory of this machine's own",
            )

    def _clean_up_after(self, predecessor: State | None) -> None:
        """Kill the server of a supervisor that was lost, if it is the one that was recorded."""
        if predecessor is None or predecessor.server is None:
            return
        if predecessor.boot_id == boot_id() and predecessor.server.find():
            kill_group(predecessor.server.pid, self._policy.kill_grace)

    def _update(self, **changes: Any) -> None:
        self._state = dataclasses.replace(self._state, **changes)
        self._write()

    def _write(self) -> None:
        write_state(self._directory.state, self._state)
        self._written = time.monotonic()

    def _pause(self, seconds: float) -> None:
        self._inbox.wait(seconds)
        if self._inbox.stop_requested:
            raise _Ending("user")

    def _wait_out_backoff(self) -> None:
        now = time.monotonic()
        crashes = recent_crashes(self._state.crashes, now, self._policy)
        if is_spent(crashes, self._policy):
            raise self._budget_error(len(crashes))
        due = start_time(crashes, self._policy, random.Random())  # noqa: S311
        if due > now:
            self._update(crashes=crashes, detail=f"starts again in {due - now:.0f} s after a crash")
        while (left := due - time.monotonic()) > 0:
            self._pause(left)

    def _budget_error(self, count: int) -> ServerCrashedError:
        last = decode_error(self._last_error) if self._last_error else None
        known = last if isinstance(last, ServerCrashedError) else ServerCrashedError("")
        error = ServerCrashedError(
            f"`{self._spec.name}` crashed {count} times in {self._policy.crash_window:.0f} s and "
            f"is not started again for now; the last time {known.ending}",
            hint=known.hint or "read the log, choose another model, or wait a little",
            exit_code=known.exit_code,
            log_tail=known.log_tail,
            log_path=known.log_path,
        )
        error.is_retryable = False
        return error

    def _install(self) -> VllmRuntime:
        self._update(phase="install", detail="")
        outcome: list[VllmRuntime | BaseException] = []
        latest: list[Progress] = []

        def work() -> None:
            try:
                outcome.append(
                    ensure_runtime(auto_install=self._spec.auto_install, on_progress=latest.append)
                )
            except BaseException as error:  # noqa: BLE001
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while not outcome:
            self._pause(self._policy.start_tick)
            if latest:
                self._show(latest.pop())
                latest.clear()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _show(self, progress: Progress) -> None:
        changes = {"detail": progress.detail, "done": progress.done, "total": progress.total}
        if any(getattr(self._state, name) != value for name, value in changes.items()):
            self._update(**changes)

    def _prepare(self, runtime: VllmRuntime) -> Launch:
        self._update(
            phase="download", detail="", binary=str(runtime.server), version=runtime.version
        )
        install_launcher(self._directory)
        snapshot = find_snapshot(self._spec.source, self._spec.revision)
        if snapshot is None:
            raise ServerStartError(f"`{self._spec.source}` is not on this machine")
        local = Path(self._spec.source).is_absolute()
        model = str(snapshot) if local or self._spec.revision else self._spec.source
        if self._spec.embeddings:
            return Launch(model, offline=True, engine="simple")
        facts = read_model_facts(snapshot, self._spec.name)
        return Launch(
            model,
            offline=True,
            engine=choose_engine(self._spec, multimodal=facts.multimodal),
            multimodal=facts.multimodal,
            tool_call_parser=facts.tool_call_parser,
            reasoning_parser=facts.reasoning_parser,
            sampling=facts.sampling,
            context_window=facts.context_window,
        )

    def _load(self, runtime: VllmRuntime, launch: Launch) -> None:
        self._update(
            phase="load",
            detail="",
            done=None,
            total=None,
            engine=launch.engine,
            multimodal=launch.multimodal,
            tool_call_parser=launch.tool_call_parser,
            reasoning_parser=launch.reasoning_parser,
            context_window=launch.context_window,
        )
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._load_once(runtime, launch, last=attempt == _PORT_ATTEMPTS):
                return

    def _load_once(self, runtime: VllmRuntime, launch: Launch, *, last: bool) -> bool:
        """Spawn the server and wait for it; False when a stranger took its port."""
        self._port = port = HeldPort()
        api_key = secrets.token_urlsafe(32)
        try:
            self._child = child = Child(
                self._directory,
                runtime.server,
                serve_arguments(self._spec, launch, port.number),
                server_environment(self._spec, os.environ, offline=launch.offline),
                log=self._directory.log,
                api_key=api_key,
            )
        except OSError as error:
            raise ServerStartError(
                f"`{runtime.server}` cannot be run: {error.strerror}",
                hint="repair the install with `car-vllm install --upgrade`",
            ) from error
        self._update(server=child.identity, port=port.number, api_key=api_key)

        def ready() -> bool:
            return is_ready(
                port.number, child.pid, self._spec.name, api_key, self._policy.probe_timeout
            )

        if self._watch(child, ready, self._policy.load_stall):
            self._update(phase="ready", ready_at=time.monotonic())
            return True
        diagnosis = diagnose(child.exit_code(), child.log)
        self._end_child()
        if diagnosis.port_taken and not last:
            self._update(server=None, port=None, api_key=None, detail="port taken, trying another")
            return False
        raise ServerStartError(
            f"`{self._spec.name}` could not be started: {diagnosis.sentence}",
            hint=diagnosis.hint,
            exit_code=child.exit_code(),
            log_tail=diagnosis.tail,
            log_path=child.log,
        )

    def _watch(self, child: Child, done: Callable[[], bool], stall: float) -> bool:
        """Wait for `done`; False when the child ended first.

        Raises:
            ServerStartError: It showed no sign of life for `stall` seconds.
        """
        seen, alive_at = child.activity(), time.monotonic()
        while child.exit_code() is None:
            if done():
                return True
            self._pause(self._policy.start_tick)
            now = time.monotonic()
            if (activity := child.activity()) != seen:
                seen, alive_at = activity, now
            elif stall and now - alive_at > stall:
                raise ServerStartError(
                    f"`{self._spec.name}` showed no sign of life for {stall:.0f} s while loading",
                    hint="read the log; CAR_VLLM_MLX_LOAD_STALL=0 waits for ever",
                    log_tail=diagnose(None, child.log).tail,
                    log_path=child.log,
                )
        return False

    def _serve(self) -> None:
        child = self._child
        assert child is not None  # noqa: S101
        floor = time.monotonic()
        served = was_busy = False
        while True:
            now = time.monotonic()
            if (code := child.exit_code()) is not None:
                self._report_crash(child, code, stable=served)
            child.trim_log(self._policy.log_limit)
            if self._clients.poll(now):
                served, was_busy = True, False
            deadline = idle_deadline(self._clients.uses, floor, self._spec.keep_alive)
            if now >= deadline or self._inbox.eviction_requested:
                if not try_exclusive(self._lease):
                    was_busy, self._inbox.eviction_requested = True, False
                elif self._clients.poll(time.monotonic()):
                    release(self._lease)
                    continue
                elif was_busy and not self._inbox.eviction_requested:
                    release(self._lease)
                    floor, was_busy = now, False
                    continue
                else:
                    raise _Ending("evicted" if self._inbox.eviction_requested else "idle")
            self._pause(min(self._policy.idle_tick, max(deadline - now, self._policy.start_tick)))

    def _report_crash(self, child: Child, code: int, *, stable: bool) -> None:
        """Record the crash.

        Raises:
            ServerCrashedError: Always.
        """
        now = time.monotonic()
        ready_at = self._state.ready_at or now
        forgiven = stable and now - ready_at > self._policy.stable_after
        crashes = () if forgiven else recent_crashes(self._state.crashes, now, self._policy)
        self._state = dataclasses.replace(self._state, crashes=(*crashes, now))
        diagnosis = diagnose(code, child.log)
        error = ServerCrashedError(
            f"the server of `{self._spec.name}` died: {diagnosis.sentence}",
            hint=diagnosis.hint,
            exit_code=code,
            log_tail=diagnosis.tail,
            log_path=child.log,
            ending=diagnosis.sentence,
        )
        error.is_retryable = not (diagnosis.out_of_memory or diagnosis.unsupported)
        raise error

    def _end_child(self) -> None:
        """Leave nobody of the child's group and nobody on its port, then let the port go."""
        if self._child is not None:
            if self._state.phase == "draining":
                self._child.interrupt(self._policy)
            else:
                self._child.kill(self._policy)
            self._child = None
        if self._port is not None:
            deadline = time.monotonic() + self._policy.kill_grace
            while not is_refused(self._port.number) and time.monotonic() < deadline:
                time.sleep(self._policy.start_tick)
            self._port.close()
            self._port = None

    def _finish(self, ending: dict[str, Any]) -> None:
        for process in psutil.Process().children(recursive=True):
            if self._child is None or process.pid != self._child.pid:
                with suppress(psutil.Error):
                    process.kill()
        if self._state.phase == "ready" and "error" not in ending:
            with suppress(OSError):
                self._update(phase="draining")
            self._state = dataclasses.replace(self._state, phase="draining")
        self._end_child()
        self._update(
            phase="stopped",
            server=None,
            port=None,
            api_key=None,
            reservation=0,
            blocked_by={},
            detail="",
            **ending,
        )
        self._clients.forget_dead()
