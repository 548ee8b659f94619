"""Ending servers from outside: stop means that nobody is left."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import suppress

from langchain_car_vllm.errors import CarVllmError, ServerBusyError, ServerError
from langchain_car_vllm.server.client_record import keepers, read_uses
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.idle import idle_deadline
from langchain_car_vllm.server.locks import (
    acquire_exclusive,
    opened_existing,
    opened_lock,
    release,
)
from langchain_car_vllm.server.policy import Policy, policy_from_environment
from langchain_car_vllm.server.process import Identity, send_signal
from langchain_car_vllm.server.recovery import clean_up
from langchain_car_vllm.server.state import State, decode_error, read_any_state
from langchain_car_vllm.server.supervision import is_supervised
from langchain_car_vllm.support.file_presence import is_folder
from langchain_car_vllm.support.threads import submit_wait

_LOOK_PATIENCE = 0.05
"""Others look at the lease by taking it for an instant."""


def idle_seconds(directory: ServerDirectory, state: State, now: float) -> float | None:
    """Return how long a ready server stays if nobody uses it, infinity where it never ends.

    Args:
        directory: Of the server key.
        state: Its state.
        now: Monotonic seconds.

    Returns:
        None where it serves somebody or is not ready.
    """
    if state.phase != "ready":
        return None
    # A lock file that somebody removed is held by nobody.
    absent, lock = suppress(FileNotFoundError), opened_existing(directory.lease_lock)
    with explain_os_errors(directory.path), absent, lock as lease:
        if not acquire_exclusive(lease, _LOOK_PATIENCE):
            return None
    if keepers(directory.clients):
        return math.inf
    deadline = idle_deadline(read_uses(directory.clients), state.ready_at or now, state.keep_alive)
    return max(0.0, deadline - now)


def stop_server(
    directory: ServerDirectory, *, force: bool = True, policy: Policy | None = None
) -> bool:
    """Stop the server of a key and return when it is gone.

    Args:
        directory: Of the server key.
        force: Whether to stop it although it is answering; its requests raise
            `ServerStoppedError`.
        policy: The timings, by default those of the environment.

    Returns:
        Whether there was one to stop.

    Raises:
        ServerBusyError: It is answering, and `force` is off.
        ServerError: It could not be ended.
    """
    policy = policy or policy_from_environment()
    with explain_os_errors(directory.path):
        if not is_folder(directory.path):
            return False
    with explain_os_errors(directory.path), opened_lock(directory.start_lock) as start:
        # A supervisor that is just being started is to be stopped as well.
        acquire_exclusive(start, policy.stop_patience)
        release(start)
        with opened_lock(directory.lease_lock) as lease:
            if (
                not force
                and not acquire_exclusive(lease, _LOOK_PATIENCE)
                and is_supervised(directory)
            ):
                raise ServerBusyError(
                    "the server is answering a request",
                    hint="wait, or use `unload(force=True)` or `car-vllm stop`",
                )
            stopped = _stop_supervisor(directory, policy)
            return clean_up(directory, policy, "user") or stopped


def stop_servers(
    directories: Sequence[ServerDirectory], *, policy: Policy | None = None
) -> Iterator[tuple[ServerDirectory, bool | CarVllmError]]:
    """Stop several servers at the same time, whatever becomes of each.

    Yields:
        Each directory as its server is gone, with what `stop_server` returned or raised.
    """
    stops = {submit_wait(stop_server, d, policy=policy): d for d in directories}
    for stop in as_completed(stops):
        try:
            yield stops[stop], stop.result()
        except CarVllmError as error:
            yield stops[stop], error


def _stop_supervisor(directory: ServerDirectory, policy: Policy) -> bool:
    """Ask the supervisor to stop; one that does not even begin to is killed.

    A successor that somebody started in the meantime is left alone.
    """
    asked: Identity | None = None
    asked_at = time.monotonic()
    stopped = False
    while is_supervised(directory):
        stopped = True
        state = read_any_state(directory.state)
        process = state.supervisor.find() if state else None
        if state is not None and process is not None and state.supervisor != asked:
            if asked is not None:
                break
            asked, asked_at = state.supervisor, time.monotonic()
            send_signal(process, signal.SIGTERM)
        if state is not None and state.phase == "stopping" and state.error is not None:
            raise decode_error(state.error)
        begun = state is not None and state.phase in ("stopping", "stopped")
        if not begun and time.monotonic() - asked_at > policy.stop_patience:
            if process is None:
                raise ServerError(
                    f"the supervisor of `{directory.path}` cannot be identified",
                    hint="end it by hand",
                )
            send_signal(process, signal.SIGKILL)
            asked_at = time.monotonic()
        time.sleep(policy.client_tick)
    return stopped
