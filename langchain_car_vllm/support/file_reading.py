"""Files that are opened to be read, on every system."""

import os
from pathlib import Path

# Windows has no pipes among its files, and would read their lines as text.
_FLAGS = os.O_RDONLY | sum(
    getattr(os, f"O_{name}", 0) for name in ("NONBLOCK", "CLOEXEC", "BINARY")
)


def open_to_read(path: str | Path) -> int:
    """Open a file and return its descriptor; a pipe is not waited for.

    Raises:
        OSError: It cannot be opened.
        ValueError: No file can be called so.
    """
    return os.open(path, _FLAGS)
