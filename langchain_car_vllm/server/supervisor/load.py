"""The server process with its port, from spawn to ready and to the end."""

import secrets
import signal
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.errors import ServerStartError, StateDirectoryError
from langchain_car_vllm.models.file_stamps import stamp_files
from langchain_car_vllm.paths import kernels_folder, make_own_folder
from langchain_car_vllm.runtime import VllmRuntime
from langchain_car_vllm.runtime.locate import overriding_binary
from langchain_car_vllm.runtime.metal import known_working_set
from langchain_car_vllm.server.child_environment import server_environment
from langchain_car_vllm.server.command import Launch, is_read_in_parts, serve_arguments
from langchain_car_vllm.server.directory import ServerDirectory, hint_of, make_checked
from langchain_car_vllm.server.launch_settings import launch_settings
from langchain_car_vllm.server.port import HeldPort, is_free
from langchain_car_vllm.server.recovery import remove_temporary_files
from langchain_car_vllm.server.supervisor.adapter_stage import check_adapter_is_used
from langchain_car_vllm.server.supervisor.child import Child
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.diagnosis import Diagnosis, diagnose
from langchain_car_vllm.server.supervisor.elastic_room import ElasticRoom
from langchain_car_vllm.server.supervisor.mends import prompt_order
from langchain_car_vllm.server.supervisor.readiness import ReadinessStall, failed_test
from langchain_car_vllm.server.supervisor.reservation import evict_idle_servers, wired_by_others
from langchain_car_vllm.support.backups import exclude_from_backups, is_tagged
from langchain_car_vllm.support.json_objects import read_json_object
from langchain_car_vllm.support.stall import Stall

_PORT_ATTEMPTS = 3
_DEATH_ATTEMPTS = 2
_AGAIN = {"port": "port taken, trying another", "death": "it was killed, trying once more"}
_SHELL_BASE = 128
_KILLED = {
    *(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
    *(_SHELL_BASE + number for number in (signal.SIGKILL, signal.SIGTERM)),
}
_PORT_GRACE = 1.0


class Server:
    """One spawned server on a port that is held for it.

    Attributes:
        child: The process.

    Raises:
        ServerStartError: The binary cannot be run.
    """

    def __init__(self, context: SupervisorContext, runtime: VllmRuntime, launch: Launch) -> None:
        self._context = context
        self._port = _hold_port()
        self._api_key = secrets.token_hex(32)
        spec = context.spec
        try:
            _make_temporary_folder(context.directory)
            make_checked(kernels_folder())
            self.child = Child(
                context.directory,
                runtime.server,
                serve_arguments(spec, launch, self._port.number, known_working_set()),
                {
                    **server_environment(
                        inherited_environment(),
                        dict(spec.server_env),
                        temporary=context.directory.temporary,
                        kernels=kernels_folder(),
                        offline=launch.offline,
                    ),
                    **launch_settings(
                        spec, launch, inherited_environment(), wired_by_others(context)
                    ),
                },
                log=context.directory.log,
                api_key=self._api_key,
            )
        except BaseException:
            self._port.close()
            raise
        context.update(
            server=self.child.identity, port=self._port.number, api_key=self._api_key, detail=""
        )
        if self.child.shows_key:
            context.update(
                warning=f"`{runtime.server}` is not a Python script, so the key of its server is "
                "visible in the list of processes to other users of this machine"
            )

    def wait_until_ready(self, room: ElasticRoom) -> bool:
        """Wait for readiness; False when the process ended first.

        Args:
            room: Gives way to others meanwhile.

        Raises:
            ServerStartError: It showed no sign of life for too long, or did not pass the readiness
                tests although it listened.
        """
        context, limit = self._context, self._context.policy.load_stall
        stall, readiness = Stall(limit, self.child.activity), ReadinessStall(limit)
        while self.child.exit_code() is None:
            failed = failed_test(
                self._port.number,
                self.child.pid,
                context.spec.served_name,
                self._api_key,
                context.policy.probe_timeout,
            )
            if failed is None:
                return True
            if not self.child.is_findable():
                raise StageEnded("lost")
            self.child.trim_log(context.policy.log_limit)
            context.pause(context.policy.start_tick)
            with suppress(OSError, StateDirectoryError):  # a look that is refused comes again
                room.seconds_to_next_look()
            if readiness.is_stalled(failed, time.monotonic()):
                raise self._stall_error(f"listened for {limit:g} s, but {failed.sentence}")
            if not failed.has_listener and stall.is_stalled():
                raise self._stall_error(
                    f"showed no sign of life for {limit:g} s while loading: {failed.sentence}"
                )
        return False

    def _stall_error(self, what: str) -> ServerStartError:
        return ServerStartError(
            f"`{self._context.spec.served_name}` {what}",
            hint="read the log; CAR_VLLM_MLX_LOAD_STALL=0 waits forever",
            log_tail=diagnose(None, self.child.log).tail,
            log_path=self.child.log,
        )

    def end(self, *, gently: bool) -> bool:
        """Leave nobody of the process group and nobody on the port, then let the port go.

        Returns:
            Whether nobody of the group is left; the kernel may be unable to end it.
        """
        policy = self._context.policy
        is_gone = self.child.interrupt(policy) if gently else self.child.kill(policy)
        remove_temporary_files(self._context.directory)
        # Whoever still listens after that is a stranger, and may stay.
        deadline = time.monotonic() + _PORT_GRACE
        with suppress(OSError):  # what the system does not tell is not waited for
            while not is_free(self._port.number) and time.monotonic() < deadline:
                time.sleep(policy.start_tick)
        self._port.close()
        return is_gone


def _make_temporary_folder(directory: ServerDirectory) -> None:
    """Make the server's folder for temporary files, empty, and keep prompts out of backups."""
    make_own_folder(directory.temporary)
    remove_temporary_files(directory)
    if not is_tagged(root := directory.path.parent):
        exclude_from_backups(root)


def _hold_port() -> HeldPort:
    try:
        return HeldPort()
    except OSError as error:
        raise ServerStartError(
            f"no port on 127.0.0.1 is available for a server: {error.strerror}",
            hint=hint_of(error, "a sandbox or a container may forbid it: start it outside of it"),
        ) from error


def load(
    context: SupervisorContext,
    runtime: VllmRuntime,
    launch: Launch,
    room: ElasticRoom,
    servers: list[Server],
) -> Server:
    """Spawn the server and wait until it is ready; a port lost to a stranger is replaced.

    Args:
        context: Of the life.
        runtime: What to run.
        launch: How.
        room: What it has set aside for company.
        servers: Gets the one that runs, so that whoever ends the life can end it too.

    Raises:
        ServerStartError: It ended or fell silent before it was ready. One that somebody killed, or
            that ran out of memory, is tried once more, with the idle neighbours gone.
    """
    files = stamp_files(context.spec.source, context.spec.adapter)
    context.update(
        phase="load",
        detail="",
        done=None,
        total=None,
        serving=launch.serving,
        files=files.digest if files else None,
    )
    attempts = {"port": _PORT_ATTEMPTS, "death": _DEATH_ATTEMPTS}
    while True:
        context.directory.mends.unlink(missing_ok=True)
        server = Server(context, runtime, launch)
        servers[:] = [server]
        if server.wait_until_ready(room):
            check_adapter_is_used(context)
            serving = _mended(context, launch)
            context.update(phase="ready", serving=serving, ready_at=time.monotonic())
            return server
        code, log = server.child.exit_code(), server.child.log
        diagnosis = diagnose(code, log)
        servers.clear()
        server.end(gently=False)
        cause = _passing_cause(code, diagnosis)
        if cause is None or attempts[cause] <= 1:
            break
        attempts[cause] -= 1
        context.update(server=None, port=None, api_key=None, detail=_AGAIN[cause])
        if cause == "death":
            evict_idle_servers(context)
    error = ServerStartError(
        f"`{context.spec.served_name}` could not be started: {diagnosis.sentence}",
        hint=diagnosis.hint or _last_resort(runtime, diagnosis),
        exit_code=code,
        log_tail=diagnosis.tail,
        log_path=log,
    )
    error.is_retryable = cause is not None and not diagnosis.out_of_memory
    raise error


def _mended(context: SupervisorContext, launch: Launch) -> Serving:
    """Return what clients are told, with what depends on the mends of the running server."""
    mends: dict[str, Any] = {}
    with suppress(FileNotFoundError):  # it is not a Python script
        mends = read_json_object(context.directory.mends.read_bytes()) or {}
    is_mended = mends.get(prompt_order.NAME, {}).get("state") == "applied"
    reads_in_order = is_mended and is_read_in_parts(context.spec, launch)
    return replace(context.state.serving, reads_in_order=reads_in_order)


def _last_resort(runtime: VllmRuntime, diagnosis: Diagnosis) -> str:
    """Return what to do about a start of whose end nothing is known that would cure it."""
    if not any(line.strip() for line in diagnosis.tail):
        named = "unset CAR_VLLM_MLX_BIN" if overriding_binary() else "take it off PATH"
        return (
            f"`{runtime.server}` ended without a message, so it may not be `vllm-mlx`: {named}, "
            "or repair the install with `car-vllm install --upgrade`"
        )
    return (
        "`car-vllm doctor --selftest --model` tests this install with a small model: if that "
        "passes, choose another conversion of your model, or report the log to vllm-mlx"
    )


def _passing_cause(code: int | None, diagnosis: Diagnosis) -> Literal["port", "death"] | None:
    """Return what ended a start and may not do so again, None for all else."""
    if diagnosis.port_taken:
        return "port"
    return "death" if diagnosis.out_of_memory or code in _KILLED else None
