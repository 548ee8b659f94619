"""What the server answers to a request, as exceptions.

Each carries LangChain's own class for the same condition as a second base, so code that catches
either works, and `is_retryable` as LangChain's retry middleware reads it. The tree is in
`langchain_car_vllm.errors`, from where users import them too.

This module must stay free of openai: constructing a model imports it.
"""

from pathlib import Path

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
    OutputParserException,
)

from langchain_car_vllm.errors import RequestError, derive_from

__all__ = [
    "AnswerError",
    "AuthenticationError",
    "ConnectionFailedError",
    "IncompleteAnswerError",
    "InvalidRequestError",
    "ModelMissingError",
    "PermissionDeniedError",
    "PromptTooLongError",
    "RateLimitError",
    "RequestTimeoutError",
    "ServerFailedError",
    "StructuredOutputError",
    "error_for_status",
]


derive_from(ModelError)


class AnswerError(RequestError):
    """Base of what went wrong between the request and the end of its answer.

    Args:
        message: One sentence that says what happened, with the server's own text.
        hint: What to do about it.
        status: The HTTP status, None where there was none.
        log_path: The server's log, None for an endpoint that somebody else runs.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        log_path: Path | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.log_path = log_path

    def __str__(self) -> str:
        parts = [self.message]
        if self.log_path is not None:
            parts.append(f"log: {self.log_path}")
        if self.hint is not None:
            parts.append(f"hint: {self.hint}")
        return "\n\n".join(parts)


class InvalidRequestError(AnswerError, ModelInvalidRequestError):
    """The request cannot be served, whoever repeats it."""


class AuthenticationError(AnswerError, ModelAuthenticationError):
    """The endpoint wants another key."""


class PermissionDeniedError(AnswerError, ModelPermissionDeniedError):
    """The key may not do that."""


class ModelMissingError(AnswerError, ModelNotFoundError):
    """The endpoint serves no model of that name."""


class RateLimitError(AnswerError, ModelRateLimitError):
    """The server takes no more requests for the moment."""

    is_retryable = True


class ServerFailedError(AnswerError, ModelAPIError):
    """The server failed while it was answering."""

    is_retryable = True


class IncompleteAnswerError(ServerFailedError):
    """The answer broke off: no reason to finish was given."""


class ConnectionFailedError(AnswerError, ModelConnectionError):
    """Nobody answers at the endpoint, or the connection broke.

    Attributes:
        refused: Nobody listened, so the request never arrived.
    """

    is_retryable = True
    refused = False


class RequestTimeoutError(AnswerError, ModelTimeoutError):
    """The request's `timeout` ran out."""

    is_retryable = True


class PromptTooLongError(AnswerError, ContextOverflowError):
    """The prompt does not fit into the context window; raised before anything is sent.

    Args:
        tokens: How many tokens the prompt has at least.
        limit: How many there may be.
        sentence: What to say instead, with both numbers.
    """

    def __init__(self, tokens: int, limit: int, sentence: str | None = None) -> None:
        text = sentence or "the prompt has at least {tokens} tokens, the context window {limit}"
        super().__init__(
            text.format(tokens=tokens, limit=limit),
            hint="shorten or summarise the conversation, lower `max_tokens`, or choose a smaller "
            "model"
            if sentence
            else "shorten or summarise the conversation, or choose a model with a longer context",
        )
        self.tokens = tokens
        self.limit = limit


class StructuredOutputError(AnswerError, OutputParserException):
    """The answer does not fit the schema, or broke off before its end.

    Args:
        message: What does not fit.
        answer: The text that was answered.
    """

    def __init__(self, message: str, *, answer: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.observation: str | None = None
        self.llm_output: str | None = answer
        self.send_to_llm = False


_BY_STATUS: dict[int, type[AnswerError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: ModelMissingError,
    408: RequestTimeoutError,
    429: RateLimitError,
    504: RequestTimeoutError,
}
_HINTS = {
    401: "pass the endpoint's key as `api_key` or set CAR_VLLM_MLX_API_KEY",
    404: "the model's name must be the one the endpoint serves",
    504: "raise `timeout`, or lower `max_tokens`",
}


def error_for_status(status: int, text: str, log_path: Path | None = None) -> AnswerError:
    """Return the exception for an HTTP status.

    Args:
        status: The status, or the `code` of an error frame in a stream.
        text: The server's own words.
        log_path: The server's log.
    """
    cls = _BY_STATUS.get(status)
    if cls is None:
        cls = ServerFailedError if status >= 500 else InvalidRequestError  # noqa: PLR2004
    message = f"the server answered {status}: {text or 'no reason given'}"
    return cls(message, hint=_HINTS.get(status), status=status, log_path=log_path)
