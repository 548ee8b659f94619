"""What keys keep that nobody has used for long: folders with their logs, and prefix caches."""

import shutil
import time
from contextlib import ExitStack, suppress
from operator import itemgetter
from pathlib import Path

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.paths import folder_size
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.locks import opened_lock, try_exclusive
from langchain_car_vllm.server.state import is_used_elsewhere, read_any_state

_MOST_CACHED = 10_000_000_000
"""Bytes of all saved prefix caches together."""


def remove_old_keys(own: ServerDirectory, lifetime: float) -> None:
    """Remove the folders of keys whose server ended long ago, and prefix caches beyond a limit.

    Args:
        own: The caller's, which stays.
        lifetime: Seconds since the last word of a supervisor; 0 keeps all folders.
    """
    with suppress(StateDirectoryError, OSError):  # no server ends for what it tidies up
        room = _MOST_CACHED - folder_size(own.prefix_caches)
        others = [(d.state.stat().st_mtime, d) for d in server_directories() if d.key != own.key]
        for last_word, directory in sorted(others, key=itemgetter(0), reverse=True):
            is_old = bool(lifetime) and time.time() - last_word > lifetime
            size = folder_size(directory.prefix_caches)
            if is_old or size > room:
                _remove_unused(directory, directory.path if is_old else directory.prefix_caches)
                size = folder_size(directory.prefix_caches)
            room -= size


def _remove_unused(directory: ServerDirectory, folder: Path) -> None:
    """Remove what a key keeps, unless somebody uses the key."""
    with suppress(OSError), ExitStack() as stack:
        state = read_any_state(directory.state)
        if state is None or is_used_elsewhere(state, directory.path):
            return
        locks = [directory.start_lock, directory.supervisor_lock]
        locks += [directory.server_lock, directory.lease_lock]
        if all(try_exclusive(stack.enter_context(opened_lock(lock))) for lock in locks):
            shutil.rmtree(folder, ignore_errors=True)
