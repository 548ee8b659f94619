"""The prefix caches that servers saved: what they take on the disk, and their removal.

The launcher chooses the folders (`server/supervisor/mends/prefix_cache_folder.py`): each has a note
beside it, which names its server key and whose lock tells that a server uses it.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.paths import folder_size, home
from langchain_car_vllm.server.locks import close_lock, open_existing, try_exclusive
from langchain_car_vllm.support.backups import TAG, exclude_from_backups, is_tagged


class PrefixCache(NamedTuple):
    """A folder with the prefix cache of one server.

    Attributes:
        path: The folder; its note lies beside it.
        key: The server key.
        bytes: What it takes on the disk.
        used: When a server used it last, in seconds since the epoch.
    """

    path: Path
    key: str
    bytes: int
    used: float


def prefix_caches() -> list[PrefixCache]:
    """Return the saved prefix caches of all servers of this user, the last used first."""
    root = _root()
    found: list[PrefixCache] = []
    notes: list[Path] = []
    with suppress(OSError):
        notes = [path for path in root.iterdir() if path.suffix == ".json"] if root else []
    for note in notes:
        with suppress(OSError, ValueError, AttributeError):
            key = str(json.loads(note.read_text(encoding="utf-8")).get("key"))
            folder = note.with_suffix("")
            found.append(PrefixCache(folder, key, folder_size(folder), note.stat().st_mtime))
    return sorted(found, key=lambda cache: -cache.used)


def keep_out_of_backups() -> None:
    """Keep the prefix caches, once there are any, out of backups: they hold whole prompts."""
    root = _root()
    if root is None or not os.path.isdir(root):  # noqa: PTH112 - `Path.is_dir` raises
        return
    if not is_tagged(root):
        exclude_from_backups(root)


def remove_empty_folders() -> None:
    """Remove the folders that only held prefix caches."""
    root = _root()
    if root is None:
        return
    with suppress(OSError):
        if [entry.name for entry in root.iterdir()] == [TAG]:
            (root / TAG).unlink()
        root.rmdir()
        root.parent.rmdir()


def _root() -> Path | None:
    base = home()
    return base / ".cache" / "vllm-mlx" / "prefix_cache" if base else None


def remove_prefix_cache(cache: PrefixCache) -> bool:
    """Remove a saved prefix cache.

    Returns:
        Whether it is gone; one that a running server uses stays.
    """
    note = cache.path.with_name(cache.path.name + ".json")
    try:
        descriptor = open_existing(note)
    except FileNotFoundError:
        return True
    try:
        if not try_exclusive(descriptor):
            return False
        shutil.rmtree(cache.path, ignore_errors=True)
        note.unlink(missing_ok=True)
    finally:
        close_lock(descriptor)
    return True
