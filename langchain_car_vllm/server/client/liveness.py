"""Is this our server, and can it serve?"""

import http.client
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

import psutil

from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import close_lock, is_held, open_existing
from langchain_car_vllm.server.port import is_refused
from langchain_car_vllm.server.process import group_members
from langchain_car_vllm.server.state import read_state

_SUCCESS = range(200, 300)


def health_ok(endpoint: str, timeout: float) -> bool:
    """Probe `<endpoint>/health` once.

    Args:
        endpoint: Root of a server, such as `http://127.0.0.1:8000`, with or without a slash.
        timeout: Seconds for connecting, and for each read after it.

    Returns:
        True on any 2xx, False on everything else; it never raises.
    """
    try:
        parts = urlsplit(endpoint.rstrip("/") + "/health")
        secure = parts.scheme == "https"
        cls = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = cls(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.request("GET", parts.path)
            return connection.getresponse().status in _SUCCESS
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return False


def is_ready(port: int, group: int, served_model: str, api_key: str, timeout: float) -> bool:
    """Tell whether our server is ready on a port that we hold.

    In this order, so that a stranger on the port never sees the key: the listener belongs to our
    process group, `/health` names our model, a wrong key is turned away, the right one is not.
    """
    return (
        not is_refused(port)
        and _listens(group, port)
        and _names_model(port, served_model, timeout)
        and _status(port, secrets.token_hex(16), timeout) == http.HTTPStatus.UNAUTHORIZED
        and _status(port, api_key, timeout) == http.HTTPStatus.OK
    )


def is_serving(directory: ServerDirectory, generation: int) -> bool:
    """Tell whether the server of a generation lives: as long as it does, its port is its own.

    It asks the kernel and the disk anew and keeps nothing open, so any thread, and any child of a
    fork, may call it.
    """
    try:
        descriptor = open_existing(directory.server_lock)
    except OSError:
        return False
    try:
        if not is_held(descriptor):
            return False
    finally:
        close_lock(descriptor)
    state = read_state(directory.state)
    return state is not None and state.generation == generation


def _listens(group: int, port: int) -> bool:
    for process in group_members(group):
        try:
            connections = process.net_connections("tcp4")
        except psutil.Error:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return False


def _names_model(port: int, served_model: str, timeout: float) -> bool:
    answer = _get(port, "/health", {}, timeout)
    if answer is None or answer[0] != http.HTTPStatus.OK:
        return False
    try:
        health: Any = json.loads(answer[1])
    except ValueError:
        return False
    return (
        isinstance(health, dict)
        and health.get("model_name") == served_model
        and health.get("status") != "unhealthy"
    )


def _status(port: int, api_key: str, timeout: float) -> int | None:
    answer = _get(port, "/v1/models", {"Authorization": f"Bearer {api_key}"}, timeout)
    return None if answer is None else answer[0]


def _get(port: int, path: str, headers: dict[str, str], timeout: float) -> tuple[int, bytes] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
