"""Reads files that came with a model, within bounds.

Somebody else wrote them: one may be a pipe that never ends, nest a million brackets, or lie where
this user may not look. What comes through is a regular file of bounded size, and whatever can go
wrong is one error with its cure.
"""

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.paths import chown_command
from langchain_car_vllm.support.file_reading import open_to_read
from langchain_car_vllm.support.printable import on_one_line

_MB = 1_000_000
_MOST_BYTES = 64 * _MB
_MOST_ENTRIES = 100_000
# What macOS says of a file that a cloud keeps and that it cannot fetch.
_ABSENT = (errno.EDEADLK, errno.ETIMEDOUT)
PRIVACY_HINT = (
    "allow the terminal or editor that runs this program to access it in System Settings, "
    "Privacy & Security, Files and Folders; over SSH, let remote users have full disk access in "
    "General, Sharing, Remote Login"
)
CLOUD_HINT = (
    "if it is in iCloud Drive or another cloud, download it in the Finder, or keep the model in "
    "a folder that is only on this disk"
)
POINTER = b"version https://git-lfs"
"""What Git's note of a large file that was not fetched begins with."""
POINTER_REASON = "is a Git LFS pointer instead of the file"
POINTER_HINT = "run `git lfs pull` in that folder, or download the model again"
_INVALID = (ValueError, TypeError, RecursionError, OverflowError, MemoryError)


# Python knows the name since 3.13.
_SF_DATALESS = 0x40000000


def is_in_cloud(found: os.stat_result) -> bool:
    """Tell whether a file is here by name alone; whoever reads of it waits until all of it came."""
    return bool(getattr(found, "st_flags", 0) & _SF_DATALESS)


def read_bytes(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return what a regular file holds.

    Args:
        path: The file; a symbolic link is followed.
        most: The largest size in bytes.

    Raises:
        UnservableModelError: There is none, it is of another kind, too large, or cannot be read.
    """
    with open_regular(path) as file:
        try:
            # One of the kernel's files may have nothing to say yet, which is None.
            found = file.read(most + 1) or b""
        except OSError as error:
            raise file_error(path, error) from error
    if len(found) > most:
        raise _problem(path, f"is larger than {most / _MB:g} MB, too large for such a file")
    return found


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; of another kind, such as a pipe, none is waited for.

    Args:
        path: The file; a symbolic link is followed.

    Raises:
        UnservableModelError: There is none, it is of another kind, or cannot be opened.
    """
    descriptor = _open(path)
    try:
        try:
            found = os.fstat(descriptor)
        except OSError as error:
            raise file_error(path, error) from error
        _check_regular(path, found)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def load_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        UnservableModelError: There is none, or it holds something else.
    """
    return parse_object(path, read_bytes(path))


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Return the JSON object that a file's content stands for.

    Args:
        path: Where it was read, for the error.
        text: The content.

    Raises:
        UnservableModelError: It is not a JSON object.
    """
    if text.startswith(POINTER):
        raise _problem(path, POINTER_REASON, hint=POINTER_HINT)
    try:
        found = json.loads(text)
    except _INVALID as error:
        raise _problem(
            path,
            f"cannot be read: {_reason(error)}",
            hint="download the model again, or correct the file",
        ) from error
    if not isinstance(found, dict):
        raise _problem(
            path, "is not a JSON object", hint="download the model again, or correct the file"
        )
    return found


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds, None where there is none that can be read."""
    try:
        return load_object(path)
    except UnservableModelError:
        return None


def read_text(path: Path, most: int = _MB) -> str | None:
    """Return a file's text, None where there is none that can be read."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except (UnservableModelError, UnicodeDecodeError):
        return None


def list_folder(directory: Path) -> dict[str, int | None]:
    """Return the files of a folder by name with their sizes, but not those of folders in it.

    A size is None for what is there and no regular file that can be reached, such as a link that
    leads nowhere.

    Raises:
        UnservableModelError: There is no such folder, or it cannot be read.
    """
    found: dict[str, int | None] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if len(found) >= _MOST_ENTRIES:
                    raise _problem(directory, f"contains more than {_MOST_ENTRIES} files")
                size = _size(entry)
                if size != _FOLDER:
                    found[entry.name] = size
    except (OSError, ValueError) as error:
        raise file_error(directory, error) from error
    return found


def bounded_integer(value: object, lowest: int, highest: int) -> int | None:
    """Return a whole number of somebody else's, None where it is none or out of its bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if lowest <= value <= highest else None


def is_file(path: Path) -> bool:
    """Return whether there is a regular file, also where the answer is forbidden."""
    return os.path.isfile(path)  # noqa: PTH113 - `Path.is_file` raises


def file_error(path: Path, error: OSError | ValueError) -> UnservableModelError:
    """Return what a failing look at a file or folder means, and what to do about it."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _problem(path, "does not exist", is_missing=True)
    if isinstance(error, PermissionError):
        return _problem(path, f"may not be read: {error.strerror}", hint=_access_hint(path, error))
    hint = CLOUD_HINT if getattr(error, "errno", None) in _ABSENT else None
    return _problem(path, f"cannot be read: {_reason(error)}", hint=hint)


def is_private(error: OSError) -> bool:
    """Tell whether macOS keeps a file from this program; it says EACCES of a lack of rights."""
    return sys.platform == "darwin" and error.errno == errno.EPERM


def _problem(
    path: Path, detail: str, *, hint: str | None = None, is_missing: bool = False
) -> UnservableModelError:
    return UnservableModelError(f"`{on_one_line(path)}` {detail}", hint=hint, is_missing=is_missing)


def _access_hint(path: Path, error: PermissionError) -> str:
    """Return how to get at a file: it is another user's, or macOS keeps it private."""
    owned = next((part for part in (path, *path.parents) if _owner(part) is not None), path)
    if _owner(owned) not in (None, os.getuid()):
        return (
            f"`{on_one_line(owned)}` belongs to another user: {chown_command(on_one_line(owned))}"
        )
    if is_private(error):
        return PRIVACY_HINT
    return f"chmod -R u+rX `{on_one_line(owned)}`"


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None


_FOLDER = -1


def _size(entry: os.DirEntry[str]) -> int | None:
    try:
        found = entry.stat()
    except OSError:
        return None
    if stat.S_ISDIR(found.st_mode):
        return _FOLDER
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _open(path: Path) -> int:
    try:
        return open_to_read(path)
    except (OSError, ValueError) as error:
        raise file_error(path, error) from error


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _problem(path, "is not a regular file")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return on_one_line(error) or type(error).__name__
