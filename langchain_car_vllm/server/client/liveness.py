"""Whether a server lives: over HTTP, or by its lock and state."""

from langchain_car_vllm.server.client.peer import holds_other_end
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import is_file_held
from langchain_car_vllm.server.state import is_of_this_container, read_state
from langchain_car_vllm.support.bounded_http import HttpError, fetch

_SUCCESS = range(200, 300)
_LONGEST = 1 << 16


def health_ok(endpoint: str, timeout: float) -> bool:
    """Probe `<endpoint>/health` once.

    Args:
        endpoint: Root of a server, such as `http://127.0.0.1:8000`, with or without a slash.
        timeout: Seconds for all of it.

    Returns:
        True on any 2xx, False on everything else; it never raises.
    """
    try:
        found = fetch(endpoint.rstrip("/") + "/health", seconds=timeout, most_bytes=_LONGEST)
    except (HttpError, ValueError):
        return False
    return found.status in _SUCCESS


def is_serving(
    directory: ServerDirectory,
    generation: int,
    own_port: int | None = None,
    peer_port: int | None = None,
) -> bool:
    """Tell whether the server of a generation lives and serves.

    One that is stopping has closed its listener before it saves its prefix cache and ends. It asks
    the kernel and the disk anew and keeps nothing open, so any thread, and any child of a fork, may
    call it.

    Args:
        directory: Of the server key.
        generation: Which server is meant.
        own_port: Whence a connection to it comes, which then has to lead to that very process.
        peer_port: Where that connection leads.
    """
    try:
        if not is_file_held(directory.server_lock):
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    state = read_state(directory.state)
    if state is None or state.generation != generation or state.phase != "ready":
        return False
    if not is_of_this_container(state):
        return False
    if own_port is None or state.server is None or state.port is None:
        return True
    return peer_port == state.port and holds_other_end(state.server, state.port, own_port)
