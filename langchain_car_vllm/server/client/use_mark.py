"""A file that a process holds locked while it uses a server: a shared lease does not tell whose."""

from pathlib import Path

from langchain_car_vllm.server.locks import (
    acquire_exclusive,
    close_lock,
    is_same_file,
    open_lock,
    release,
)

_PATIENCE = 0.1
"""The supervisor looks at a mark by taking it for an instant."""


class UseMark:
    """This process's mark of one kind of use.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def show(self) -> None:
        """Let the supervisor see that this process uses the server."""
        if self._lock is None or not is_same_file(self._lock, self._path):
            self.close()
            self._lock = open_lock(self._path)
        acquire_exclusive(self._lock, _PATIENCE)

    def hide(self) -> None:
        """Let it see that this process does not any more; the file stays open for the next time."""
        if self._lock is not None:
            release(self._lock)

    def close(self) -> None:
        """Close the file."""
        if self._lock is not None:
            close_lock(self._lock)
            self._lock = None
