"""Limits of the operating system that a program can run into, and what to do about them."""

import errno

HINTS = {
    errno.EMFILE: "raise the limit with `ulimit -n 4096`, or close what the program keeps open",
    errno.ENFILE: "the whole machine has too many open files: end other programs",
    errno.EAGAIN: "end other programs, or raise the limit with `ulimit -u`",
    errno.ENOMEM: "memory ran out: end other programs",
}


def limit_of(error: BaseException | None) -> OSError | None:
    """Return the limit that an error comes from, itself or what caused it, None for no limit."""
    first, seen = error, set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        is_limit = isinstance(error, OSError) and error.errno in HINTS
        # Sockets that do not block say EAGAIN all the time, in the context of other errors.
        if is_limit and (error is first or error.errno != errno.EAGAIN):  # type: ignore[attr-defined]
            return error  # type: ignore[return-value]
        error = error.__cause__ or error.__context__
    return None


def hint_for_limit(error: BaseException | None) -> str | None:
    """Return what to do about the limit that an error comes from, None for no limit."""
    found = limit_of(error)
    return None if found is None else HINTS[found.errno or 0]
