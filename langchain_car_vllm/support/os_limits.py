"""Limits of the operating system that a program can run into, and what to do about them."""

import errno
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# Windows has none: a program may have as many files open there as it likes.
_resource: Any = import_module("resource") if find_spec("resource") else None

HINTS = {
    errno.EMFILE: "raise the limit with `ulimit -n 4096`, or close what the program keeps open",
    errno.ENFILE: "the whole machine has too many open files: end other programs",
    errno.EAGAIN: "end other programs, or raise the limit with `ulimit -u`",
    errno.ENOMEM: "memory ran out: end other programs",
}


def most_files() -> int | None:
    """Return how many files this program may have open, None for no limit."""
    if _resource is None:
        return None
    soft: int = _resource.getrlimit(_resource.RLIMIT_NOFILE)[0]
    return None if soft == _resource.RLIM_INFINITY else soft


def os_errors_of(error: BaseException | None) -> Iterator[OSError]:
    """Yield what the operating system said: the error itself, or what caused it."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            yield error
        error = error.__cause__ or error.__context__


def limit_of(error: BaseException | None) -> OSError | None:
    """Return the limit that an error comes from, itself or what caused it, None for no limit."""
    for found in os_errors_of(error):
        # Sockets that do not block say EAGAIN all the time, in the context of other errors.
        if found.errno in HINTS and (found is error or found.errno != errno.EAGAIN):
            return found
    return None


def hint_for_limit(error: BaseException | None) -> str | None:
    """Return what to do about the limit that an error comes from, None for no limit."""
    found = limit_of(error)
    return None if found is None else HINTS[found.errno or 0]
