"""What makes two ways to name a model the same weights."""

import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.lm_studio import lm_studio_folders
from langchain_car_vllm.models.snapshot import find_commit, find_snapshot, hub_cache
from langchain_car_vllm.support.file_reading import open_to_read

_LONGEST_PATH = 1024
_MAIN = "main"


def identity_of(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return what is equal for all ways to name the same weights, with the revision that is meant.

    The Hub does not tell letter case apart. A directory is the one that its links, its letter case
    and the form of its accents lead to. One that is the local copy of a repository is that
    repository.
    """
    if not source.startswith("/"):
        return source.lower(), None if revision == _MAIN else revision
    path = Path(real_path(source))
    repository = _repository_of(path)
    return (repository.lower(), None) if repository else (str(path), None)


def led_to(source: str | None) -> tuple[str, ...]:
    """Return what an identity may change with, in microseconds; nothing for a repository.

    A link may lead elsewhere tomorrow. What may be the copy of a repository is looked at anew, in a
    millisecond: a download may complete it, or bring a newer one.
    """
    if source is None or not source.startswith("/"):
        return ()
    try:
        found = os.stat(source)  # noqa: PTH116
    except (OSError, ValueError):
        return ()
    path, may_be_copy = _place(source, found.st_dev, found.st_ino, found.st_ctime_ns)
    return (str(path), _repository_of(path) or "") if may_be_copy else (str(path),)


@lru_cache(maxsize=256)
def _place(source: str, *_file: int) -> tuple[Path, bool]:
    """Return where a folder is kept, and whether it is where copies of repositories are.

    It is remembered while the same folder is there.
    """
    path = Path(real_path(source))
    return path, path.parent.name == "snapshots" or _in_lm_studio(path) is not None


def real_path(path: str) -> str:
    """Return the path of a file or folder as it is kept on the disk.

    macOS leads several spellings to one folder, and only the open file tells which it keeps.
    """
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - no system but those with kernel locks has it

        with suppress(OSError, ValueError):
            descriptor = open_to_read(path)
            try:
                kept = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(_LONGEST_PATH))
            finally:
                os.close(descriptor)
            return os.fsdecode(kept.rstrip(b"\0"))
    return _resolve_links(path)


def _resolve_links(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path


def _repository_of(path: Path) -> str | None:
    """Return the Hub repository whose default copy on this machine a directory is."""
    for name_of in (_in_hub_cache, _in_lm_studio):
        try:
            name = name_of(path)
            found = find_snapshot(name) if name else None
        except UnservableModelError:
            found = None
        if found is not None and _resolve_links(str(found)) == _resolve_links(str(path)):
            return name
    return None


def _in_hub_cache(path: Path) -> str | None:
    """Return the repository whose commit a directory of the Hub cache holds."""
    cache = hub_cache()
    folder = path.parent.parent
    if cache is None or path.parent.name != "snapshots" or not folder.name.startswith("models--"):
        return None
    if _resolve_links(str(folder.parent)) != _resolve_links(str(cache)):
        return None
    name = folder.name.removeprefix("models--").replace("--", "/", 1)
    return name if find_commit(name) == path.name else None


def _in_lm_studio(path: Path) -> str | None:
    roots = {_resolve_links(str(folder)) for folder in lm_studio_folders()}
    return f"{path.parent.name}/{path.name}" if str(path.parent.parent) in roots else None
