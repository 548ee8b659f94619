"""The failures that servers tell of in the midst of an answer, each in a form of its own."""

import re
from typing import Any

from langchain_car_vllm.wire.errors import NO_ENDPOINT, error_for_status


def failure_of(event: dict[str, Any]) -> Exception | None:
    """Return the failure that an event without a choice tells of, in any server's form."""
    if (error := event.get("error")) or error == {}:
        return failure_from(error)
    detail = event.get("detail")
    if detail is not None:
        return failure_from(detail if isinstance(detail, dict) else {"message": detail})
    said = event.get("message") or event.get("msg")
    is_error = "error" in (event.get("object"), event.get("type"))
    is_bare = event.get("code") is None and _OTHERWISE.isdisjoint(event)
    has_code = str(event.get("code") or 0) not in _SUCCESSES
    if is_error or (has_code and said is not None) or (is_bare and isinstance(said, str)):
        return failure_from({**event, "message": said})
    return None


def failure_from(error: Any) -> Exception:
    """Return the failure that an `error` tells of, in any server's form."""
    if not isinstance(error, dict):
        error = {"message": error}
    said = error.get("message") or error.get("type") or (None if error.get("code") else error)
    text = str(said or "")
    told = [str(error[key]) for key in ("code", "status", "type") if error.get(key)]
    status = next((word for word in told if _A_STATUS.fullmatch(word)), None)
    if status is None and (code := error.get("code")):
        text = f"{text} ({code})"  # some say in it alone that a prompt is too long
    if text.startswith(NO_ENDPOINT):
        status = "404"  # LM Studio tells it with a status of success
    return error_for_status(status or _status_of(" ".join(told)), text)


def _status_of(words: str) -> int:
    """Return the status that an error's words stand for, where it has no number."""
    words = words.lower()
    return next((status for word, status in _STATUSES.items() if word in words), 500)


# Codes of gateways that put one into each event, and words for what else an event may be.
_SUCCESSES, _OTHERWISE = ("0", "200"), {"type", "object", "status", "event", "choices", "usage"}
_A_STATUS = re.compile(r"[345]\d\d")
_STATUSES = {
    **dict.fromkeys(("rate_limit", "ratelimit", "quota", "too_many_requests"), 429),
    **dict.fromkeys(("authentication", "api_key", "unauthorized"), 401),
    **dict.fromkeys(("permission", "forbidden"), 403),
    **dict.fromkeys(("invalid", "unsupported", "bad_request", "context_length"), 400),
}
