"""What an endpoint that somebody else runs says of itself."""

import dataclasses
import http.client
import json
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.process_state import ProcessLock
from langchain_car_vllm.wire.errors import (
    ConnectionFailedError,
    ModelMissingError,
    error_for_status,
)

_SECONDS = 2.0
_FRESH_SECONDS = 60.0
_known: dict[str, tuple[float, dict[str, Any]]] = {}
_lock = ProcessLock()


def described(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its engine and whether it takes media, where its `/health` tells.

    `/health` needs no key and names both (vllm-mlx 0.6.0). It is asked once a minute for each
    address that answers. Other servers leave both unknown; an address that does not answer is left
    to the request itself.
    """
    if found := find_described(endpoint):
        return found
    health = _health(endpoint.base_url)
    if health is None:
        return endpoint
    with _lock:
        _known[endpoint.base_url] = (time.monotonic(), health)
    return _with(endpoint, health)


def find_described(endpoint: Endpoint) -> Endpoint | None:
    """Return the same where its address has answered before; never blocks."""
    with _lock:
        asked, health = _known.get(endpoint.base_url, (0.0, None))
    if health is None or time.monotonic() - asked > _FRESH_SECONDS:
        return None
    return _with(endpoint, health)


def forget() -> None:
    """Ask every address again."""
    with _lock:
        _known.clear()


def _with(endpoint: Endpoint, health: dict[str, Any]) -> Endpoint:
    engine = health.get("engine_type")
    kind = health.get("model_type")
    multimodal = kind == "mllm" if kind in ("mllm", "llm") else None
    return dataclasses.replace(
        endpoint,
        engine=engine if engine in ("simple", "batched") else None,
        multimodal=multimodal,
        media=() if multimodal is False else endpoint.media,
    )


def check_served(endpoint: Endpoint) -> None:
    """Refuse an endpoint that does not serve its model.

    Raises:
        ConnectionFailedError: It does not answer.
        AnswerError: It refuses to tell, for instance because of the key.
        ModelMissingError: It serves others.
    """
    status, found = get_json(endpoint.base_url, "/models", endpoint.api_key)
    if status is None:
        raise ConnectionFailedError(f"nobody answers at {endpoint.base_url}")
    if status != HTTPStatus.OK:
        raise error_for_status(status, str((found or {}).get("detail") or ""))
    served = [entry.get("id") for entry in (found or {}).get("data") or []]
    if endpoint.served_model not in served:
        raise ModelMissingError(
            f"the endpoint does not serve `{endpoint.served_model}`",
            hint=f"it serves {', '.join(f'`{name}`' for name in served) or 'nothing'}",
        )


def _health(base_url: str) -> dict[str, Any] | None:
    root = base_url.removesuffix("/v1")
    status, found = get_json(root, "/health", None)
    return None if status is None else found or {}


def get_json(base_url: str, path: str, key: str | None) -> tuple[int | None, dict[str, Any] | None]:
    """Return the status, None where nobody answers, and the JSON object, None for none."""
    parts = urlsplit(base_url)
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=_SECONDS)
    try:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None, None
    finally:
        connection.close()
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return response.status, found if isinstance(found, dict) else None
