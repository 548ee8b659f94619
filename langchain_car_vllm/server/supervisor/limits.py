"""What a server that is shared must not inherit from the program that happened to start it."""

import os
import resource
import sys
from contextlib import suppress

_LIMITS = ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_RSS", "RLIMIT_FSIZE", "RLIMIT_NPROC")
_MOST_FILES = {"darwin": 10_240}
_MANY_FILES = 65_536
_USUAL_STACK = 8 * 2**20
# More than any kernel counts; it takes those of them that are there.
_ALL_PROCESSORS = range(8192)
# Python knows the name since 3.12.
_PRIO_DARWIN_PROCESS = 4


def shed_limits(platform: str = sys.platform) -> list[str]:
    """Undo niceness and limits of the starting program, as far as the system lets this user.

    Of a crash no memory is written to the disk, whatever that program wants of its own: it would be
    gigabytes, with prompts and the key.

    Returns:
        What could not be undone.
    """
    left = []
    if platform == "darwin":
        # In the background, as of `taskpolicy -b`, there are slow cores alone, and little disk.
        with suppress(OSError):
            os.setpriority(_PRIO_DARWIN_PROCESS, 0, 0)
    left += _leave_scheduling_class()
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        if (nice := os.getpriority(os.PRIO_PROCESS, 0)) > 0:
            left.append(f"nice {nice}")
    left += [name for name in _LIMITS if not _lift(name)]
    if not _raise_stack():
        left.append("RLIMIT_STACK")
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _lift_hard_limit_of_files()
    allow_files()
    return left


def _leave_scheduling_class() -> list[str]:
    """Leave, on Linux, the processors and the scheduling class; return what could not be left."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setaffinity(0, _ALL_PROCESSORS)
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with suppress(OSError):
            if (found := os.sched_getscheduler(0)) != os.SCHED_OTHER:
                return [f"scheduling class {found}"]
    return []


def _raise_stack() -> bool:
    """Raise the limit of the stack, and so that of threads, to the usual; tell whether it holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft >= _USUAL_STACK:
        return True
    for limits in ((_USUAL_STACK, hard), (_USUAL_STACK, _USUAL_STACK), (hard, hard)):
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_STACK, limits)
            break
    return resource.getrlimit(resource.RLIMIT_STACK)[0] >= _USUAL_STACK


def _lift(name: str) -> bool:
    """Lift one limit; tell whether nothing is left of it."""
    number = getattr(resource, name, None)
    if number is None:
        return True
    _, hard = resource.getrlimit(number)
    for limits in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (hard, hard)):
        with suppress(OSError, ValueError):
            resource.setrlimit(number, limits)
            break
    return name == "RLIMIT_NPROC" or resource.getrlimit(number)[0] == resource.RLIM_INFINITY


def _lift_hard_limit_of_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES.get(sys.platform, _MANY_FILES)
    with suppress(OSError, ValueError):
        if hard != resource.RLIM_INFINITY and hard < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def allow_files() -> None:
    """Let this process open as many files as one with many connections needs, within its limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES.get(sys.platform, _MANY_FILES)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft == resource.RLIM_INFINITY or soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
