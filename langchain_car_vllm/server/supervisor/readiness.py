"""When a starting server can serve: the tests that it has to pass, in their order."""

import http.client
import json
import secrets
from typing import Any

import psutil

from langchain_car_vllm.server.port import is_refused
from langchain_car_vllm.server.process import group_members


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
