"""The supervisors of servers: which of them live, and what they are asked.

One that lives holds a kernel lock, for its whole life.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.server.directory import (
    ServerDirectory,
    explain_os_errors,
    server_directories,
)
from langchain_car_vllm.server.locks import is_file_held
from langchain_car_vllm.server.process import send_signal
from langchain_car_vllm.server.state import State, read_any_state


def is_supervised(directory: ServerDirectory) -> bool:
    """Tell whether the supervisor of a server lives.

    Raises:
        FileNotFoundError: The directory is gone.
    """
    try:
        return is_file_held(directory.supervisor_lock)
    except FileNotFoundError:
        directory.path.stat()
        return False


def supervised_servers(
    apart_from: str, is_wanted: Callable[[State], object]
) -> list[tuple[ServerDirectory, State]]:
    """Return the supervised servers whose states say what is looked for.

    Raises:
        StateDirectoryError: The system refuses a look at one of them.
    """
    return [
        (directory, state)
        for directory, state, lives in _look(is_wanted, apart_from=apart_from)
        if lives
    ]


def running_servers() -> list[tuple[ServerDirectory, State]]:
    """Return every server key of this CAR_HOME that has a living supervisor, with its state."""
    return supervised_servers("", _is_not_stopped)


def lost_servers() -> list[tuple[ServerDirectory, State]]:
    """Return every server key whose state says that it runs, though nobody supervises it."""
    return [(directory, state) for directory, state, lives in _look(_is_not_stopped) if not lives]


def _is_not_stopped(state: State) -> bool:
    return state.phase != "stopped"


def _look(
    is_wanted: Callable[[State], object], *, apart_from: str = ""
) -> Iterator[tuple[ServerDirectory, State, bool]]:
    """Yield the servers whose states say what is looked for, and whether a supervisor lives."""
    for directory in server_directories():
        with explain_os_errors(directory.path):
            try:
                state = read_any_state(directory.state)
                if state is None or directory.key == apart_from or not is_wanted(state):
                    continue
                lives = is_supervised(directory)
            except (FileNotFoundError, NotADirectoryError):  # removed in this instant
                continue
        yield directory, state, lives


def ask_to_make_room(path: Path, seen: State) -> None:
    """Ask the supervisor that wrote a state to stop its server if nobody is served."""
    _signal(path, seen, signal.SIGUSR1, lambda state: state.phase == "ready")


def ask_to_shrink(path: Path, seen: State) -> None:
    """Ask the supervisor that wrote a state to go on with less memory, as a start's state says."""
    _signal(path, seen, signal.SIGUSR2, can_shrink)


def can_shrink(state: State) -> bool:
    """Tell whether a server can go on with less memory, also while it loads."""
    return state.least > 0 and state.phase in ("load", "ready")


def _signal(
    path: Path, seen: State, number: signal.Signals, is_apt: Callable[[State], bool]
) -> None:
    """Signal the supervisor of an apt server, unless another generation has come since."""
    state = read_any_state(path)
    if state is None or state.generation != seen.generation or not is_apt(state):
        return
    process = state.supervisor.find()
    if process is not None:
        with suppress(ServerError):  # whoever wants the memory asks again
            send_signal(process, number)
