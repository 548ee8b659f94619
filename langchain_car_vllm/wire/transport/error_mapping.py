"""Where what the transport raises becomes an error of ours."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

import httpcore2
import httpx2

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.support.foreign_numbers import plain_value
from langchain_car_vllm.support.os_limits import hint_for_limit, limit_of
from langchain_car_vllm.wire.errors import (
    NO_ENDPOINT,
    AnswerError,
    ConnectionFailedError,
    InvalidRequestError,
    ModelMissingError,
    RequestTimeoutError,
    ServerFailedError,
    error_for_status,
)
from langchain_car_vllm.wire.transport.refusal import Refusal
from langchain_car_vllm.wire.transport.remote import (
    HINT_FOR_ADDRESS,
    hint_for_connection,
    hint_for_path,
)

CONNECT_SECONDS = 10.0
"""Most seconds that a connection may take to stand."""
TRANSPORT_ERRORS = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)
"""What keeps a request from its answer on the way."""
_UNWRITABLE = (TypeError, ValueError, RecursionError)


@contextmanager
def map_errors(
    endpoint: Endpoint,
    timeout: float | None,
    translate: Callable[[AnswerError], Exception] | None = None,
    *,
    sent: Callable[[], Mapping[str, str]],
) -> Iterator[None]:
    """Raise what goes wrong inside as an `AnswerError` with the server's text and its log.

    Args:
        endpoint: Who was asked.
        timeout: The request's limit in seconds, for the message.
        translate: Turns the error into the one that the user gets.
        sent: Returns the headers that were sent along, which no error shows, nor what reports
            errors with the variables of each function on the way.
    """
    try:
        with _as_answer_errors(endpoint, timeout):
            yield
    except AnswerError as error:
        _hide_secrets(error, endpoint, sent())
        if error.log_path is None:
            error.log_path = endpoint.log_path
        if NO_ENDPOINT in error.message:
            error.hint = hint_for_path(endpoint.shown_url, "")
        translated = translate(error) if translate else error
        if translated is error:
            raise
        raise translated from error


def _hide_secrets(
    error: BaseException | None, endpoint: Endpoint, headers: Mapping[str, str]
) -> None:
    """Take the secrets out of an error and its causes, which a traceback shows as well."""
    while error is not None:
        error.args = tuple(
            endpoint.without_secrets(str(said), headers)
            if isinstance(said, str | BaseException)
            else said
            for said in error.args
        )
        if isinstance(error, AnswerError):
            error.message = endpoint.without_secrets(error.message, headers)
        if isinstance(error, Refusal):
            error.body = error.text = endpoint.without_secrets(error.text, headers)
            error.location = None
        error = error.__cause__


@contextmanager
def _as_answer_errors(endpoint: Endpoint, timeout: float | None) -> Iterator[None]:
    try:
        yield
    except Refusal as error:
        raise _refused(endpoint, error) from error
    except httpcore2.TimeoutException as error:
        # On a Mac nobody refuses a connection to the held port of a server that has died.
        has_time = timeout is None or timeout > CONNECT_SECONDS
        if endpoint.managed and has_time and isinstance(error, httpcore2.ConnectTimeout):
            failed = ConnectionFailedError(f"the connection to {endpoint.shown_url} timed out")
            failed.refused = True
            raise failed from error
        raise timeout_error(endpoint, timeout) from error
    except httpcore2.LocalProtocolError:  # its text may hold a key
        raise InvalidRequestError("the request is not valid HTTP") from None
    except TRANSPORT_ERRORS as error:
        limit = limit_of(error)
        failed = ConnectionFailedError(
            f"the connection to {endpoint.shown_url} failed: {_text_of(limit or error)}",
            hint=hint_for_limit(limit) or _hint_for_connection(endpoint, error),
        )
        failed.refused = limit is None and isinstance(error, httpcore2.ConnectError)
        raise failed from error
    except httpx2.DecodingError as error:
        raise ServerFailedError(f"the server's answer cannot be read: {error}") from error


def _hint_for_connection(endpoint: Endpoint, error: Exception) -> str | None:
    if endpoint.managed or not isinstance(error, httpcore2.ConnectError):
        return None
    return hint_for_connection(error, endpoint.shown_url)


def _text_of(error: BaseException) -> str:
    """Return what an error says, its name or its cause's where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if text := str(error).strip():
        return text
    cause = error.__cause__ or error.__context__
    return _text_of(cause) if cause is not None else type(error).__name__


@contextmanager
def map_encoding_errors(body: Mapping[str, object] | None = None) -> Iterator[None]:
    """Raise what keeps a request from being written as JSON as an `InvalidRequestError`.

    Args:
        body: What is being written, whose field is then named.
    """
    try:
        yield
    except _UNWRITABLE as error:
        hint = None
        if isinstance(error, UnicodeEncodeError):
            hint = (
                'a text contains half a character: `text.encode("utf-8", "replace").decode()` '
                "repairs it"
            )
        elif isinstance(error, TypeError):
            hint = "give numbers, True, False, None, strings, and lists and dictionaries of these"
        text = f"{_unwritable_field(body or {})} cannot be written as JSON: {error}"
        raise InvalidRequestError(text, hint=hint) from error


def _unwritable_field(body: Mapping[str, object]) -> str:
    """Return the field of a request that cannot be written, or the request where it is none."""
    for name, value in body.items():
        try:
            json.dumps(value, allow_nan=False, default=plain_value)
        except _UNWRITABLE:
            return f"`{name}`"
    return "the request"


def timeout_error(endpoint: Endpoint, timeout: float | None) -> RequestTimeoutError:
    """Return the error for a request whose time ran out."""
    return RequestTimeoutError(
        "the server did not answer in time"
        if timeout is None
        else f"no answer within the `timeout` of {timeout:g} s",
        hint="raise `timeout`, or lower `max_tokens`",
        log_path=endpoint.log_path,
    )


def _refused(endpoint: Endpoint, error: Refusal) -> AnswerError:
    text, status = error.words, error.status
    if status in range(300, 400):
        return _redirected(error)
    found = error_for_status(status, text)
    if status == HTTPStatus.NOT_FOUND and not isinstance(found, ModelMissingError):
        found.hint = None if endpoint.managed else hint_for_path(endpoint.shown_url, text)
    return found


def _redirected(error: Refusal) -> AnswerError:
    place, hint = "and does not say where to", HINT_FOR_ADDRESS
    if error.location:
        place = f"to `{error.location}`, and the prompt is not sent there"
        hint = "if you trust that address, write it as `base_url`"
    return InvalidRequestError(
        f"the endpoint redirects ({error.status}) {place}", hint=hint, status=error.status
    )
