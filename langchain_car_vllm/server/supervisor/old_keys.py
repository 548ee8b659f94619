"""Folders of keys that nobody has used for long: each new setting makes one, with its logs."""

import shutil
import time
from contextlib import ExitStack, suppress

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.locks import opened_lock, try_exclusive
from langchain_car_vllm.server.state import read_any_state


def remove_old_keys(own: ServerDirectory, lifetime: float) -> None:
    """Remove the folders of keys whose server stopped long ago and that nobody looks at.

    Args:
        own: The caller's, which stays.
        lifetime: Seconds since the last word of a supervisor; 0 keeps all.
    """
    if not lifetime:
        return
    with suppress(StateDirectoryError):  # no server ends for what it tidies up
        for directory in server_directories():
            if directory.key != own.key:
                _remove_if_old(directory, lifetime)


def _remove_if_old(directory: ServerDirectory, lifetime: float) -> None:
    with suppress(OSError), ExitStack() as stack:
        state = read_any_state(directory.state)
        is_old = time.time() - directory.state.stat().st_mtime > lifetime
        if state is None or state.phase != "stopped" or not is_old:
            return
        locks = (directory.start_lock, directory.supervisor_lock, directory.lease_lock)
        if all(try_exclusive(stack.enter_context(opened_lock(lock))) for lock in locks):
            shutil.rmtree(directory.path, ignore_errors=True)
