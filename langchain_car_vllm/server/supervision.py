"""Which servers have a supervisor: by the kernel lock that it holds for its whole life."""

from collections.abc import Callable
from contextlib import suppress

from langchain_car_vllm.server.directory import (
    ServerDirectory,
    explain_os_errors,
    server_directories,
)
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.state import State, read_any_state


def is_supervised(directory: ServerDirectory) -> bool:
    """Tell whether the supervisor of a server lives."""
    with opened_lock(directory.supervisor_lock) as descriptor:
        return is_held(descriptor)


def supervised_servers(
    apart_from: str, is_wanted: Callable[[State], object]
) -> list[tuple[ServerDirectory, State]]:
    """Return the supervised servers whose states say what is looked for.

    Raises:
        StateDirectoryError: The system refuses a look at one of them.
    """
    found = []
    for directory in server_directories():
        # One that is removed in this instant has nothing.
        with explain_os_errors(directory.path), suppress(FileNotFoundError):
            state = read_any_state(directory.state)
            if state is None or directory.key == apart_from or not is_wanted(state):
                continue
            if is_supervised(directory):
                found.append((directory, state))
    return found
