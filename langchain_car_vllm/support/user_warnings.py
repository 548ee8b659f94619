"""Warnings that can be filtered by class, and name the user's own line, not one in between."""

import inspect
import warnings
from types import FrameType

from langchain_car_vllm.support.printable import printable
from langchain_car_vllm.support.process_state import ProcessLock

_BETWEEN = frozenset(
    {
        "asyncio",
        "concurrent",
        "contextvars",
        "langchain",
        "langchain_car_vllm",
        "langchain_core",
        "langgraph",
        "langsmith",
        "pydantic",
        "threading",
    }
)
"""Packages that stand between a user's call and a warning about it."""


class CutOffCallWarning(UserWarning):
    """A tool call was cut off, and is among the `invalid_tool_calls`."""


class EmptyAnswerWarning(UserWarning):
    """The model used up all its tokens before it began to answer, or the answer got lost."""


class InvalidCallWarning(UserWarning):
    """The answer is nothing but tool calls that nobody can run."""


class UnlabelledAnswerWarning(UserWarning):
    """The model would rather have written something other than a label."""


class UnsentContentWarning(UserWarning):
    """Something in a tool's result or an earlier turn went out as a line of text or not at all."""


_told: set[str] = set()
_lock = ProcessLock()


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the program that called, at our own in a thread that somebody started."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_between(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), category, stacklevel=level if frame is not None else 2)


def warn_user_once(message: str) -> None:
    """Warn the first time in this process that there is something to say."""
    with _lock:
        if message in _told:
            return
        _told.add(message)
    warn_user(message)


def _is_between(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in _BETWEEN
