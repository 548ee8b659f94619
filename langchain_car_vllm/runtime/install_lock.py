"""One provisioner at a time, among all processes of a user."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.host import unsupported_platform

try:
    import fcntl
except ImportError as error:
    raise unsupported_platform() from error

_POLL = 0.1


@contextmanager
def install_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold the lock file's kernel lock and yield its descriptor.

    The descriptor is for the programs that the installation starts: a uv that outlives a killed
    provisioner keeps the lock, so that nobody else changes the environment meanwhile. (That is why
    this is not `filelock.FileLock`, whose descriptor is its own.)

    Args:
        path: The lock file, which stays.
        on_wait: Called ten times a second while another process holds it; an exception that it
            raises ends the wait.

    Raises:
        ProvisionError: The file cannot be locked here.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProvisionError(
            "lock", str(error), hint="set CAR_VLLM_MLX_RUNTIME to a folder that you can write to"
        ) from error
    try:
        while not _taken(descriptor, path):
            on_wait()
            time.sleep(_POLL)
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ProvisionError(
            "lock", f"`{path}`: {error}", hint="set CAR_VLLM_MLX_RUNTIME to a local directory"
        ) from error
    return True
