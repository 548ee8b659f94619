"""What a lost supervisor left: its server is ended, its state says so."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import acquire_exclusive, opened_lock
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import is_this_boot, kill_group
from langchain_car_vllm.server.state import (
    Reason,
    State,
    is_used_elsewhere,
    mark_stopped,
    read_any_state,
)

_LOCK_PATIENCE = 1.0
_FIRST_WORDS = 3
"""Of a command line, among which a server of ours has its launcher."""


def end_lost_server(state: State, directory: ServerDirectory, policy: Policy) -> bool:
    """Kill the server of a supervisor that was lost, if it is the one that was recorded.

    Args:
        state: What was recorded.
        directory: Where.
        policy: How long to wait for the kernel.

    Returns:
        Whether nobody of its group is left.
    """
    if state.server is None:
        return True
    process = state.server.find() if is_this_boot(state.boot_id) else None
    if process is not None:
        if _is_of_original(process, directory):
            return True
        if not kill_group(state.server.pid, policy.kill_grace):
            return False
    remove_temporary_files(directory)
    return True


def remove_temporary_files(directory: ServerDirectory) -> None:
    """Remove what a server that has ended left: one that is killed removes nothing itself.

    Pictures, sounds and films of requests are such files.
    """
    with suppress(OSError), os.scandir(directory.temporary) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry)  # noqa: PTH108 - not a Path


def _is_of_original(process: psutil.Process, directory: ServerDirectory) -> bool:
    """Tell whether a server runs from another directory, of which this one is a copy."""
    own = directory.launcher
    try:
        words = map(Path, process.cmdline()[:_FIRST_WORDS])
        named = [word for word in words if word.name == own.name]
        return bool(named) and not any(word.samefile(own) for word in named)
    except (OSError, psutil.Error):
        return False


def clean_up(directory: ServerDirectory, policy: Policy, reason: Reason) -> bool:
    """End what a lost supervisor left, and say in its place that the server is stopped.

    Returns:
        Whether there was anything to do.

    Raises:
        ServerError: The system cannot end the server.
    """
    with opened_lock(directory.supervisor_lock) as lock:
        if not acquire_exclusive(lock, _LOCK_PATIENCE):
            return False
        state = read_any_state(directory.state)
        if state is None or state.phase == "stopped" or is_used_elsewhere(state, directory.path):
            return False
        if not end_lost_server(state, directory, policy):
            raise ServerError(
                f"the server of `{state.served_name}` does not end, not even after SIGKILL",
                hint="it is stuck in a system call; if that lasts, restart the machine",
            )
        with suppress(OSError):  # on a full disk: nobody is left, and who comes next sees that
            mark_stopped(directory.state, reason)
        return True
