"""Where the SDK's and the transport's exceptions become ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import (
    AnswerError,
    ConnectionFailedError,
    InvalidRequestError,
    RequestTimeoutError,
    ServerFailedError,
    error_for_status,
)


@contextmanager
def map_errors(
    endpoint: Endpoint,
    timeout: float | None,
    told: Callable[[AnswerError], Exception] | None = None,
) -> Iterator[None]:
    """Raise what goes wrong inside as an `AnswerError` with the server's text and its log.

    Args:
        endpoint: Who was asked.
        timeout: The request's limit in seconds, for the message.
        told: Turns the error into what the user is told.
    """
    try:
        with _as_answer_errors(endpoint, timeout):
            yield
    except AnswerError as error:
        if error.log_path is None:
            error.log_path = endpoint.log_path
        told_error = told(error) if told else error
        if told_error is error:
            raise
        raise told_error from error


@contextmanager
def _as_answer_errors(endpoint: Endpoint, timeout: float | None) -> Iterator[None]:
    try:
        yield
    except openai.APIStatusError as error:
        text = _detail(error)
        raise error_for_status(error.status_code, text) from error
    except (openai.APITimeoutError, httpx2.TimeoutException) as error:
        raise timeout_error(endpoint, timeout) from error
    except (openai.APIConnectionError, httpx2.TransportError) as error:
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
        failed = ConnectionFailedError(
            f"the connection to {endpoint.base_url} failed: {cause or error}"
        )
        failed.refused = isinstance(cause, httpx2.ConnectError)
        raise failed from error
    except (openai.OpenAIError, httpx2.HTTPError) as error:
        raise ServerFailedError(f"the server's answer cannot be read: {error}") from error


@contextmanager
def map_encoding_errors() -> Iterator[None]:
    """Raise what keeps a request from being written as JSON as an `InvalidRequestError`."""
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the request cannot be written as JSON: {error}") from error


def timeout_error(endpoint: Endpoint, timeout: float | None) -> RequestTimeoutError:
    """Return the error for a request whose time ran out."""
    return RequestTimeoutError(
        "the server did not answer in time"
        if timeout is None
        else f"no answer within the `timeout` of {timeout:g} s",
        hint="raise `timeout`, or lower `max_tokens`",
        log_path=endpoint.log_path,
    )


def _detail(error: openai.APIStatusError) -> str:
    """Return the server's own words: FastAPI's `detail`, which the SDK does not show."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("detail", body.get("message", body))
    if isinstance(body, list):
        return "; ".join(_complaint(entry) for entry in body)
    if isinstance(body, dict):
        return str(body.get("message") or body.get("error") or body)
    return str(body or error.response.text or "")


def _complaint(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    place = ".".join(str(part) for part in entry.get("loc") or () if part != "body")
    return f"{place}: {entry.get('msg')}" if place else str(entry.get("msg"))
