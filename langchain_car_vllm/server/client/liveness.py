"""Whether a server lives: over HTTP, or by its lock and state."""

import os
from collections.abc import Iterator

import psutil

from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import is_file_held
from langchain_car_vllm.server.process import Identity
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


def holds_other_end(server: Identity, server_port: int, own_port: int) -> bool:
    """Tell whether a loopback connection of ours leads to a server process or one of its children.

    A connection that was not accepted yet belongs to whoever listens. Where the kernel tells
    nothing of a process of this user's, as in a sandbox, it is taken for the server's.

    Args:
        server: The process that was spawned.
        server_port: Where it listens.
        own_port: From where the connection comes.
    """
    try:
        return any(
            found.laddr
            and found.laddr.port == server_port
            and (
                found.status == psutil.CONN_LISTEN or (found.raddr and found.raddr.port == own_port)
            )
            for process in _with_children(server.pid)
            for found in process.net_connections("tcp4")
        )
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return not _is_foreign(server.pid)


def _is_foreign(pid: int) -> bool:
    """Tell whether a process is known to be another user's."""
    try:
        return psutil.Process(pid).uids().effective != os.geteuid()
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False


def _with_children(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield root
    yield from root.children(recursive=True)
