"""What an endpoint that somebody else runs says of itself."""

import dataclasses
import http.client
import json
import threading
from typing import Any
from urllib.parse import urlsplit

from langchain_car_vllm.endpoint import Endpoint

_SECONDS = 2.0
_known: dict[str, dict[str, Any]] = {}
_lock = threading.Lock()


def described(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its engine and whether it takes media, where its `/health` tells.

    `/health` needs no key and names both (vllm-mlx 0.6.0). It is asked once for each address that
    answers; other servers leave it unknown, and an address that does not answer is left to the
    request itself.
    """
    if found := find_described(endpoint):
        return found
    health = _health(endpoint.base_url)
    if health is None:
        return endpoint
    with _lock:
        _known[endpoint.base_url] = health
    return _with(endpoint, health)


def find_described(endpoint: Endpoint) -> Endpoint | None:
    """Return the same where its address has answered before; never blocks."""
    with _lock:
        health = _known.get(endpoint.base_url)
    return None if health is None else _with(endpoint, health)


def _with(endpoint: Endpoint, health: dict[str, Any]) -> Endpoint:
    engine = health.get("engine_type")
    kind = health.get("model_type")
    return dataclasses.replace(
        endpoint,
        engine=engine if engine in ("simple", "batched") else None,
        multimodal=kind == "mllm" if kind in ("mllm", "llm") else None,
    )


def _health(base_url: str) -> dict[str, Any] | None:
    parts = urlsplit(base_url)
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=_SECONDS)
    try:
        connection.request("GET", parts.path.rstrip("/").removesuffix("/v1") + "/health")
        response = connection.getresponse()
        found = json.loads(response.read())
    except (OSError, http.client.HTTPException):
        return None
    except ValueError:
        return {}
    finally:
        connection.close()
    return found if isinstance(found, dict) else {}
