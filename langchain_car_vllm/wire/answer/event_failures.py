"""The failures that servers tell of in the midst of an answer, each in a form of its own."""

from typing import Any

from langchain_car_vllm.wire.errors import ServerFailedError, error_for_status


def failure_of(event: dict[str, Any]) -> Exception | None:
    """Return the failure that an event without a choice tells of, in any server's form."""
    if (error := event.get("error")) or error == {}:
        return failure_from(error)
    detail = event.get("detail")
    if detail is not None:
        return failure_from(detail if isinstance(detail, dict) else {"message": detail})
    is_error = "error" in (event.get("object"), event.get("type")) or "code" in event
    said = event.get("message") or event.get("msg")
    if isinstance(said, str) or (is_error and "message" in event):
        return failure_from({**event, "message": said})
    return None


def failure_from(error: Any) -> Exception:
    """Return the failure that an `error` tells of, in any server's form."""
    if not isinstance(error, dict):
        return ServerFailedError(f"the server failed: {error}")
    text = str(error.get("message") or error.get("type") or "")
    return error_for_status(error.get("code") or error.get("status") or _word_of(error), text)


def _word_of(error: dict[str, Any]) -> int:
    """Return the status that an error's type stands for, where it has no code."""
    kind = str(error.get("type") or "").lower()
    return next((code for word, code in _WORDS.items() if word in kind), 500)


_WORDS = {"rate_limit": 429, "ratelimit": 429, "authentication": 401, "invalid_request": 400}
