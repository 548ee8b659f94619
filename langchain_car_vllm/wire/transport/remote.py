"""What an endpoint that somebody else runs says of itself."""

import dataclasses
import errno
import hashlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx2

from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.support.bounded_http import HttpError, HttpResponse, fetch
from langchain_car_vllm.support.json_objects import read_json_object
from langchain_car_vllm.support.os_limits import hint_for_limit, os_errors_of
from langchain_car_vllm.support.process_state import ProcessLock
from langchain_car_vllm.wire.errors import (
    ConnectionFailedError,
    ModelMissingError,
    ServerFailedError,
    error_for_status,
    says_no_path,
)
from langchain_car_vllm.wire.transport.refusal import Refusal

_SECONDS = 2.0
_FRESH_SECONDS = 60.0
_MOST_BYTES = 4 << 20
_MOST_NAMES = 20
_OWNER = "vllm-mlx"
HINT_FOR_ADDRESS = "check `base_url`, and that the server behind it runs"
_HINT_FOR_NEIGHBOUR = (
    f"{HINT_FOR_ADDRESS}; if it does, macOS may keep this program from the local network: allow "
    "its terminal or editor in System Settings, Privacy & Security, Local Network"
)
# What OpenSSL calls an answer that is none of TLS, in its releases.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


class _Description(NamedTuple):
    """What is known of an address, nothing where it did not tell."""

    asked_at: float
    health: Mapping[str, Any]


_Caller = tuple[str, str]
"""An address and who asks there: somebody else may be told more."""

_known: dict[tuple[_Caller, Headers], _Description] = {}
_without_status: dict[_Caller, float] = {}
_lock = ProcessLock()


def describe(endpoint: Endpoint, headers: Headers = (), timeout: float | None = None) -> Endpoint:
    """Return the endpoint with its engine and whether it takes media, where it tells.

    `/v1/models` is asked first. Only where vllm-mlx answers, which names itself as the owner,
    `/health` is asked too: on a gateway it may start a request to every model behind it. Each
    address is asked once a minute, whether it tells or not. What it told stands while it is too
    busy to answer.
    """
    if found := find_description(endpoint, headers):
        return found
    deadline = time.monotonic() + min(_SECONDS, timeout or _SECONDS)
    place = (_caller(endpoint), headers)
    health = _health(endpoint, headers, deadline)
    with _lock:
        if health is None:
            health = _known[place].health if place in _known else {}
        _known[place] = _Description(time.monotonic(), health)
    return _with(endpoint, health)


def find_description(endpoint: Endpoint, headers: Headers = ()) -> Endpoint | None:
    """Return the same where its address was asked before; never blocks."""
    with _lock:
        known = _known.get((_caller(endpoint), headers))
    if known is None or time.monotonic() - known.asked_at > _FRESH_SECONDS:
        return None
    return _with(endpoint, known.health)


def forget() -> None:
    """Ask every address again."""
    with _lock:
        _known.clear()
        _without_status.clear()


def note_missing_status(endpoint: Endpoint) -> None:
    """Remember for a minute that an address does not tell what it does."""
    with _lock:
        _without_status[_caller(endpoint)] = time.monotonic()


def lacks_status(endpoint: Endpoint) -> bool:
    """Tell whether an address did not tell what it does within the last minute."""
    with _lock:
        asked_at = _without_status.get(_caller(endpoint))
    return asked_at is not None and time.monotonic() - asked_at <= _FRESH_SECONDS


def _caller(endpoint: Endpoint) -> _Caller:
    return endpoint.base_url, hashlib.sha256((endpoint.api_key or "").encode()).hexdigest()


def _with(endpoint: Endpoint, health: Mapping[str, Any]) -> Endpoint:
    engine = health.get("engine_type")
    kind = health.get("model_type")
    multimodal = kind == "mllm" if kind in ("mllm", "llm") else endpoint.multimodal
    return dataclasses.replace(
        endpoint,
        # What the user says of it stands: a gateway hides the engine.
        engine=endpoint.engine or (engine if engine in ("simple", "batched") else None),
        multimodal=multimodal,
        media=() if multimodal is False else endpoint.media,
    )


def _health(endpoint: Endpoint, headers: Headers, deadline: float) -> Mapping[str, Any] | None:
    """Return what a `vllm-mlx` says of itself, nothing of any other; None where nobody answers."""
    url, key = endpoint.base_url, endpoint.api_key
    models = _try_json(url, "/models", key, headers, deadline)
    if not models or all(entry.get("owned_by") != _OWNER for entry in _entries(models)):
        return models and {}
    return _try_json(url.removesuffix("/v1"), "/health", None, headers, deadline)


def _try_json(
    base_url: str, path: str, key: str | None, headers: Headers, deadline: float
) -> dict[str, Any] | None:
    """Return what an address answers, nothing where it refuses; None where it cannot answer."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return None
    status, found = get_json(base_url, path, key, headers=headers, seconds=seconds)
    if status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return None
    return found or {} if status == HTTPStatus.OK else {}


def _entries(models: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    entries = (models or {}).get("data")
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def check_served(endpoint: Endpoint, headers: Headers = ()) -> None:
    """Refuse an endpoint that does not serve its model.

    Raises:
        ConnectionFailedError: It does not answer.
        AnswerError: It refuses to tell, for instance because of the key.
        ModelMissingError: It serves others.
    """
    try:
        response = _get(endpoint.base_url, "/models", endpoint.api_key, headers, 10.0)
    except HttpError as error:
        raise ConnectionFailedError(
            f"{endpoint.shown_url} does not answer: {error}",
            hint=hint_for_limit(error) or hint_for_connection(error, endpoint.shown_url),
        ) from error
    if response.status != HTTPStatus.OK:
        said = Refusal(response.status, content=response.body).words
        text = endpoint.without_secrets(said, dict(headers))
        refused = error_for_status(response.status, text)
        if response.status == HTTPStatus.NOT_FOUND:
            refused.hint = hint_for_path(endpoint.shown_url, text)
        raise refused
    found = read_json_object(response.body)
    if found is None or "data" not in found:  # LM Studio tells a wrong path in such an object
        raise ServerFailedError(
            f"{endpoint.shown_url}/models is not the list of models of an OpenAI API",
            hint=hint_for_path(endpoint.shown_url, ""),
        )
    served = [str(entry.get("id")) for entry in _entries(found)]
    if endpoint.served_model not in served:
        names = ", ".join(f"`{name[:100]}`" for name in served[:_MOST_NAMES])
        raise ModelMissingError(
            f"the endpoint does not serve `{endpoint.served_model}`",
            hint=f"it serves {names or 'nothing'}",
        )


def hint_for_connection(error: BaseException, url: str, platform: str = sys.platform) -> str:
    """Return what may be wrong where nobody answers at an address."""
    if any(getattr(found, "reason", None) in _NO_TLS for found in os_errors_of(error)):
        return f"did you mean `http{url.removeprefix('https')}`? The server there does not use TLS"
    is_unreachable = any(found.errno == errno.EHOSTUNREACH for found in os_errors_of(error))
    return _HINT_FOR_NEIGHBOUR if is_unreachable and platform == "darwin" else HINT_FOR_ADDRESS


def hint_for_path(url: str, text: str) -> str | None:
    """Return what may be wrong with an address that the server does not know."""
    for end in ("/chat/completions", "/completions", "/embeddings", "/rerank", "/models"):
        if url.endswith(end):
            return f"`base_url` is the root of the API: `{url.removesuffix(end)}`"
    if (lower := re.sub(r"/V(?=\d+(/|$))", "/v", url)) != url:
        return f"did you mean `{lower}`?"
    if not re.search(r"/v\d+(/|$)", url):
        return f"did you mean `{url.removesuffix('/api')}/v1`?"  # Ollama's own API is at /api
    if says_no_path(text):
        return "`base_url` must be the root of an OpenAI API, such as `http://127.0.0.1:8000/v1`"
    return None


def get_json(
    base_url: str,
    path: str,
    key: str | None,
    *,
    headers: Headers = (),
    seconds: float = _SECONDS,
    is_ours: Callable[..., bool] | None = None,
) -> tuple[int | None, dict[str, Any] | None]:
    """Return the status, None where nobody answers, and the JSON object, None for none.

    Args:
        base_url: Where.
        path: Below it.
        key: The bearer key.
        headers: Sent along.
        seconds: For all of it.
        is_ours: Whether the server there is the one that was meant, asked before the key is shown.
    """
    try:
        response = _get(base_url, path, key, headers, seconds, is_ours=is_ours)
    except HttpError:
        return None, None
    return response.status, read_json_object(response.body)


def _get(
    base_url: str,
    path: str,
    key: str | None,
    headers: Headers,
    seconds: float,
    *,
    is_ours: Callable[..., bool] | None = None,
) -> HttpResponse:
    bearer = {"authorization": f"Bearer {key}"} if key else {}
    return fetch(
        base_url.rstrip("/") + path,
        seconds=seconds,
        most_bytes=_MOST_BYTES,
        headers={**bearer, **{name.lower(): value for name, value in headers}},
        is_ours=is_ours,
        trust=lambda: httpx2.create_ssl_context(trust_env=False),  # as calls do
    )
