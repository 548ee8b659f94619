"""One server's life, from the first wish for it to its end.

    queued ──> install ──> download ──> load ──> ready ──> stopping ──> stopped
       └──────────┴───────────┴──────────┴─────────┴─── crash, failure, stop ──┘

Everything runs in the supervisor's main thread, one stage after the other; what blocks is a child
process or the one thread that installs the runtime.
"""

import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from langchain_car_vllm.errors import (
    CarVllmError,
    ServerCrashedError,
    ServerError,
    ServerStartError,
)
from langchain_car_vllm.server.command import started_with
from langchain_car_vllm.server.directory import ServerDirectory, state_directory_error
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import descendants, kill_group
from langchain_car_vllm.server.recovery import end_lost_server
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import State, decode_error, encode_error, read_any_state
from langchain_car_vllm.server.supervisor.child import install_launcher
from langchain_car_vllm.server.supervisor.context import (
    NOT_QUEUED,
    StageEnded,
    SupervisorContext,
    SupervisorLock,
)
from langchain_car_vllm.server.supervisor.elastic_room import ElasticRoom
from langchain_car_vllm.server.supervisor.load import Server, load
from langchain_car_vllm.server.supervisor.old_keys import remove_old_keys
from langchain_car_vllm.server.supervisor.prepare import (
    check_fits,
    check_model_can_be_had,
    fetch_model,
    usable_runtime,
)
from langchain_car_vllm.server.supervisor.reservation import reserve_memory
from langchain_car_vllm.server.supervisor.restarts import (
    is_spent,
    recent_crashes,
    start_time,
    take_blamed,
)
from langchain_car_vllm.server.supervisor.serve import serve
from langchain_car_vllm.server.supervisor.usage import ClientRecords
from langchain_car_vllm.server.tickets import remove_leftovers
from langchain_car_vllm.server.wakefulness import Wakefulness
from langchain_car_vllm.support.file_presence import entries_of


class Supervisor:
    """The supervisor's one loop.

    Raises:
        StateDirectoryError: The state was written on another machine.
    """

    def __init__(
        self, directory: ServerDirectory, spec: ServerSpec, policy: Policy, held: SupervisorLock
    ) -> None:
        predecessor = read_any_state(directory.state)
        _clean_up_after(predecessor, directory, policy)
        self._context = SupervisorContext(
            directory, spec, policy, predecessor=predecessor, held=held
        )
        self._last_error = predecessor.error if predecessor else None
        self._servers: list[Server] = []
        install_launcher(directory)
        self._awake = Wakefulness(policy.awake_linger)
        self._clients = ClientRecords(directory.clients)
        self._clients.poll(time.monotonic())
        self._clients.forget_dead()

    def run(self) -> None:
        """Live until the server is stopped, idle, evicted, dead or could not be started."""
        context = self._context
        ending: dict[str, Any] = {"reason": "lost"}
        try:
            self._awake.look(is_working=True)
            self._wait_out_backoff()
            check_model_can_be_had(context.spec)
            check_fits(context)
            runtime = usable_runtime(context)
            launch = fetch_model(context, runtime).launch
            launch = started_with(launch, reserve_memory(context, launch.memory))
            room = ElasticRoom(context, launch)
            # An upgrade may have begun while memory was awaited.
            server = load(context, usable_runtime(context), launch, room, self._servers)
            remove_old_keys(context.directory, context.policy.key_lifetime)
            serve(context, server.child, self._clients, self._awake, room)
        except StageEnded as end:
            ending = {"reason": end.reason}
        except CarVllmError as error:
            reason = "crash" if context.state.phase == "ready" else "failed"
            ending = {"reason": reason, "error": encode_error(error)}
        except OSError as error:
            # A call by descriptor has a number there.
            named = isinstance(error.filename, str) and error.filename
            failure = state_directory_error(error, Path(named or context.directory.path))
            ending = {"reason": "failed", "error": encode_error(failure)}
        except Exception as error:
            bug = ServerStartError(
                f"the supervisor failed: {error!r}",
                hint="this is a bug: please report it with the log",
                log_path=context.directory.supervisor_log,
            )
            ending = {"reason": "failed", "error": encode_error(bug)}
            raise
        finally:
            self._finish(ending)

    def _wait_out_backoff(self) -> None:
        context, policy = self._context, self._context.policy
        now = time.monotonic()
        crashes = recent_crashes(context.state.crashes, now, policy)
        blamed = take_blamed(context.directory.blame, now, policy)
        if is_spent(counted := [crash for crash in crashes if crash not in blamed], policy):
            raise self._budget_error(len(counted))
        due = start_time(crashes, policy, random.Random())  # noqa: S311
        if due > now:
            detail = f"starts again in {due - now:.0f} s after a crash"
            context.update(crashes=crashes, detail=detail)
        while (left := due - time.monotonic()) > 0:
            context.pause(left)

    def _budget_error(self, count: int) -> ServerCrashedError:
        last = decode_error(self._last_error) if self._last_error else None
        known = last if isinstance(last, ServerCrashedError) else ServerCrashedError("")
        window = self._context.policy.crash_window
        error = ServerCrashedError(
            f"`{self._context.spec.served_name}` crashed {count} times in {window:.0f} s and is "
            f"not started again for now; most recently: {known.ending}",
            hint=known.hint or "read the log, choose another model, or wait a few minutes",
            exit_code=known.exit_code,
            log_tail=known.log_tail,
            log_path=known.log_path,
            ending=known.ending,
        )
        error.is_retryable = False
        return error

    def _finish(self, ending: dict[str, Any]) -> None:
        """Leave nobody behind and say why it is over."""
        self._awake.end()
        context = self._context
        gently = (
            context.state.phase == "ready" and "error" not in ending and ending["reason"] != "lost"
        )
        if gently:
            try:
                context.update(phase="stopping")
            except OSError:
                # Clients would still take it for ready, and send to whoever listens on its port
                # while it saves.
                gently = False
        groups = {server.child.pid for server in self._servers}
        for process in descendants():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) not in groups:
                    process.kill()
        for server in self._servers:
            if not server.end(gently=gently):
                self._outlast(server.child.pid)
        with suppress(OSError):  # on a full disk: who comes next sees that nobody is left
            context.update(
                phase="stopped",
                server=None,
                port=None,
                api_key=None,
                reservation=0,
                least=0,
                wired=0,
                is_wanted=False,
                **NOT_QUEUED,
                **{"detail": "", "error": None, **ending},
            )
        self._clients.forget_all()
        context.directory.author_lock(context.state.supervisor.tag).unlink(missing_ok=True)

    def _outlast(self, group: int) -> None:
        """Stay until a server is gone that not even SIGKILL ends: it holds its memory."""
        context, grace = self._context, self._context.policy.kill_grace
        error = ServerError(
            f"process {group} of `{context.spec.served_name}` does not end, not even after SIGKILL",
            hint="it is stuck in a system call; if that lasts, restart the machine",
        )
        with suppress(OSError):
            context.update(phase="stopping", detail=error.message, error=encode_error(error))
        while not kill_group(group, grace):
            pass


def _clean_up_after(predecessor: State | None, directory: ServerDirectory, policy: Policy) -> None:
    """Kill the server of a supervisor that was lost, if it is the one that was recorded."""
    for life in entries_of(directory.path, "life-*.lock"):
        life.unlink(missing_ok=True)
    remove_leftovers(directory.turns)
    if predecessor is not None:
        end_lost_server(predecessor, directory, policy)
