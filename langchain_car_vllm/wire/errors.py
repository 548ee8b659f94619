"""What the server answers to a request, as exceptions.

Each carries LangChain's own class for the same condition as a second base, so code that catches
either works, and `is_retryable` as LangChain's retry middleware reads it. The tree is in
`langchain_car_vllm.errors`, from where users import them too.

This module must stay free of openai: constructing a model imports it.
"""

import re
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
    "says_no_path",
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


class InvalidRequestError(AnswerError, ModelInvalidRequestError):
    """The request cannot be served, however often it is repeated."""


class AuthenticationError(AnswerError, ModelAuthenticationError):
    """The endpoint does not accept the key."""


class PermissionDeniedError(AnswerError, ModelPermissionDeniedError):
    """The key may not do that."""


class ModelMissingError(AnswerError, ModelNotFoundError):
    """The endpoint serves no model of that name."""


class RateLimitError(AnswerError, ModelRateLimitError):
    """The server accepts no more requests at the moment."""

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
    """The prompt does not fit: into the context window, the memory, or a limit of the user's.

    Args:
        tokens: How many tokens the prompt has at least, None where the server does not tell.
        limit: How many there may be, None where the server does not tell.
        sentence: What to say instead, with both numbers.
        hint: What to do about that.
        said: The server's own words; None where it was found before anything was sent.
    """

    def __init__(
        self,
        tokens: int | None = None,
        limit: int | None = None,
        sentence: str | None = None,
        hint: str | None = None,
        *,
        said: str | None = None,
    ) -> None:
        text = (
            sentence
            or "the prompt has at least {tokens} tokens, but the context window has {limit}"
        )
        super().__init__(
            said or text.format(tokens=tokens, limit=limit),
            hint=hint
            or "shorten or summarise the conversation, or choose a model with a longer context",
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
    408: RequestTimeoutError,
    429: RateLimitError,
    504: RequestTimeoutError,
}
_HINTS = {
    401: "pass the endpoint's key as `api_key` or set CAR_VLLM_MLX_API_KEY",
    504: "raise `timeout`, or lower `max_tokens`",
}
_TOO_MANY = "max_tokens exceeds server limit"
_BAD_REQUEST = 400
_NOT_FOUND = 404
_FAILED = 500
NO_ENDPOINT = "Unexpected endpoint or method"
"""What LM Studio says of an address that it does not know, and only of such."""
# The expressions below are compiled when an error first asks for them.
_NO_PATH = rf"(not found.?|404.{{0,30}}|a web page.*|File Not Found.*|{NO_ENDPOINT}.*)?"
# What LiteLLM, llama-swap, llama.cpp's router, OpenRouter, DeepSeek and Mistral call a bad request:
# a model that they do not have.
_NO_MODEL = (
    r"Invalid model name passed|could not find real modelID|^model '.{1,200}' not found"
    r"|is not a valid model ID|^Model Not Exist|^Invalid model: "
)
# LiteLLM without a database: of any key but its master key.
_WRONG_KEY = "No connected db"
_TYPE = r"content.? type|not.{0,20}supported"
# OpenAI, vLLM, LiteLLM, llama.cpp, Ollama, LM Studio, Anthropic, Gemini, Groq, in this order, then
# vLLM and SGLang of today, TGI, xAI, TensorRT-LLM, Cohere, Ollama's engine, Moonshot, vLLM for
# media, ds4, Copilot, DashScope and Volcano.
_TOO_LONG = (
    r"context_length_exceeded|maximum context length|ContextWindowExceeded"
    r"|exceed(s|ed)? (the )?(available |model'?s? |maximum )?context|exceed_context_size"
    r"|context (window|length|size)\W.{0,40}exceed|exceeds? the (maximum )?context"
    r"|context the overflows|greater than the context length"
    r"|prompt is too long|input (is|prompt is) too long|input token count.{0,40}exceeds"
    r"|reduce the length of the messages"
    r"|longer than the (maximum model|model'?s context) length|`inputs` (tokens|must have less)"
    r"|maximum prompt length|exceeds? max_input_len|too many tokens: |exceed context limit"
    r"|exceeded max context length|exceeded model token limit"
    r"|prompt \([^()]{1,60}\) is too long|prompt has [\d,]{1,20} tokens?, but the configured"
    r"|prompt token count.{0,40}exceeds|range of input length should be"
    r"|(input|prompt) length.{0,40}(exceeds the maximum|greater than max_seq_len)"
)


def error_for_status(status: object, text: str) -> AnswerError:
    """Return the exception for an HTTP status.

    Args:
        status: The status, or the `code` of an error frame in a stream, which gateways send as
            text; what is not one counts as a failure of the server.
        text: The server's own words.
    """
    code = _code(status)
    message = f"the server answered {code}: {text.strip() or 'no reason given'}"
    if code not in _BY_STATUS and _says(_TOO_LONG, text):
        too_long = PromptTooLongError(said=message)
        too_long.status = code
        return too_long
    if code == _BAD_REQUEST and _says(_WRONG_KEY, text):
        code, message = 401, f"{message} (what a gateway says of a wrong key)"
    hint = _HINTS.get(code)
    cls = _BY_STATUS.get(code)
    if cls is None:
        cls = ServerFailedError if code >= _FAILED else InvalidRequestError
    if _TOO_MANY in text:
        hint = "lower `max_tokens`, or give the server a higher `--max-request-tokens`"
    is_missing = code == _BAD_REQUEST and _says(_NO_MODEL, text)
    if code == _NOT_FOUND and not says_no_path(text) and not _says(_TYPE, text):
        is_missing = True
    if is_missing:
        cls, hint = ModelMissingError, "the model's name must be the one the endpoint serves"
    return cls(message, hint=hint, status=code)


def says_no_path(text: str) -> bool:
    """Return whether a text is what servers say of an address that they do not know."""
    return re.fullmatch(_NO_PATH, text.strip(), re.IGNORECASE) is not None


def _says(words: str, text: str) -> bool:
    return re.search(words, text, re.IGNORECASE) is not None


def _code(status: object) -> int:
    try:
        code = int(status)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return _FAILED
    return code if 300 <= code < 600 else _FAILED  # noqa: PLR2004 - what a status can be
