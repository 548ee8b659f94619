"""What lies at a path. What cannot be looked at is an error, never taken for what is not there.

Python 3.14's `Path.exists`, `is_file`, `is_dir` and `is_symlink` take it for that, and so does
`Path.glob` from 3.13 on. What is not there is made, removed or done without; what is only closed
to this user, or could not be asked for want of a descriptor, must not be.
"""

import errno
import os
import stat
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_present(path: Path) -> bool:
    """Tell whether there is something, behind whatever links.

    Raises:
        OSError: Nobody can tell.
    """
    return _mode(os.stat, path) is not None


def is_file(path: Path) -> bool:
    """Tell whether there is a regular file, behind whatever links.

    Raises:
        OSError: Nobody can tell.
    """
    return stat.S_ISREG(_mode(os.stat, path) or 0)


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder, behind whatever links.

    Raises:
        OSError: Nobody can tell.
    """
    return stat.S_ISDIR(_mode(os.stat, path) or 0)


def is_link(path: Path) -> bool:
    """Tell whether there is a symbolic link, wherever it leads.

    Raises:
        OSError: Nobody can tell.
    """
    return stat.S_ISLNK(_mode(os.lstat, path) or 0)


def entries_of(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what lies in a folder by names of a pattern, sorted; nothing where there is none.

    Args:
        folder: The folder.
        pattern: As `fnmatch` takes it, for the name alone; `*` means names with a dot, too.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _mode(look: Callable[[Path], os.stat_result], path: Path) -> int | None:
    try:
        return look(path).st_mode
    except ValueError:  # no name of a file holds a null character
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
