"""The supervisors of servers: which of them live, and what they are asked.

One that lives holds a kernel lock, for its whole life.
"""

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.server.directory import (
    ServerDirectory,
    explain_os_errors,
    server_directories,
)
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.process import send_signal
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


def ask_to_make_room(path: Path, seen: State) -> None:
    """Ask the supervisor that wrote a state to stop its server if nobody is served."""
    _signal(path, seen, signal.SIGUSR1)


def ask_to_shrink(path: Path, seen: State) -> None:
    """Ask the supervisor that wrote a state to go on with less memory, as a start's state says."""
    if seen.least:  # others know no such signal
        _signal(path, seen, signal.SIGUSR2)


def _signal(path: Path, seen: State, number: signal.Signals) -> None:
    """Signal the supervisor of a ready server, unless another generation has come since."""
    state = read_any_state(path)
    if state is None or state.generation != seen.generation or state.phase != "ready":
        return
    process = state.supervisor.find()
    if process is not None:
        with suppress(ServerError):  # whoever wants the memory asks again
            send_signal(process, number)
