"""The saved prefix cache belongs to exactly what it was computed from.

The server names its folder after the model alone, so new weights at the same path, another commit
of a Hub model or other settings would read what is not theirs and answer wrongly. Here the name
ends in a hash of all that: the files of the model, the files that arguments name, the versions of
the software and the server key, which covers the user's settings. Beside each folder lies a note
(`<folder>.json`) whose lock tells that a server uses it.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from typing import Any

from .mend import find, mend

_OLDEST_SECONDS = 30 * 86_400
_MOST_BYTES = 10_000_000_000
_NAME_BYTES = 80
_INDEX = "index.json"
_PACKAGES = ("vllm-mlx", "mlx", "mlx-lm", "mlx-vlm")


@mend("prefix-cache-folder", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _own_the_folder(module: Any) -> None:
    """Keep the saved cache under what it was computed from, never under a name of the model."""
    original = find(module, "_get_cache_dir")
    folder = CacheFolder(os.path.basename(os.getcwd()), sys.argv[1:])

    def cache_dir() -> str:
        return folder.path(str(original()))

    module._get_cache_dir = cache_dir


@mend("prefix-cache-saving", "vllm_mlx.memory_cache", "vllm-mlx 0.6.0")
def _save_whole(module: Any) -> None:
    """Remove what was saved before, its index first, when the cache is saved anew.

    vllm-mlx 0.6.0 writes over the files of the last time, one by one, and the index at the end.
    Where that is cut short, by a kill or the end of the machine, the old index would give new
    states to the tokens of other prompts: wrong answers.
    """
    cache = find(module, "MemoryAwarePrefixCache")
    save = find(cache, "save_to_disk", "cache_dir")
    find(cache, "__len__")

    def save_whole(self: Any, cache_dir: str) -> Any:
        if len(self):
            for folder, _, names in list(os.walk(cache_dir)):
                if _INDEX in names:
                    os.unlink(os.path.join(folder, _INDEX))
            shutil.rmtree(cache_dir, ignore_errors=True)
        return save(self, cache_dir)

    cache.save_to_disk = save_whole


class CacheFolder:
    """Where this server process keeps its prefix cache.

    Args:
        key: The server key.
        arguments: The server's arguments; the model is the second.
    """

    def __init__(self, key: str, arguments: "list[str]") -> None:
        self._key = key
        self._arguments = arguments
        # Before the weights are read: what is swapped while they load is noticed below.
        self._first = self._digest()
        self._path: str | None = None
        self._note = -1

    def path(self, named: str) -> str:
        """Return the folder; it stays the same for the life of this process.

        Args:
            named: The folder that the server would take.
        """
        if self._path is None:
            digest = self._digest()
            if digest != self._first:
                digest = secrets.token_hex(8)
            root, name = os.path.split(named)
            kept = name.encode()[-_NAME_BYTES:].decode(errors="ignore")
            path = os.path.join(root, f"{kept}-{digest}")
            os.makedirs(root, exist_ok=True)
            self._note = _hold(f"{path}.json", self._key)
            self._path = path
        remove_old_folders(os.path.dirname(self._path), self._key, self._path)
        return self._path

    def _digest(self) -> str:
        model = self._arguments[1] if len(self._arguments) > 1 else ""
        parts = {
            "key": self._key,
            "model": model,
            "files": _stamps(folder_of(model)),
            "adapter": _stamps(os.environ.get("CAR_VLLM_LAUNCH_ADAPTER", "")),
            "arguments": [_stamps(a) for a in self._arguments[2:] if os.path.exists(a)],
            "versions": _versions(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(model: str) -> str:
    """Return the local folder of a model: itself, or the snapshot that its Hub name stands for."""
    if os.path.isdir(model):
        return model
    with suppress(ImportError, OSError):
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = os.path.join(HF_HUB_CACHE, "models--" + model.replace("/", "--"))
        with open(os.path.join(cache, "refs", "main"), encoding="utf-8") as file:
            return os.path.join(cache, "snapshots", file.read().strip())
    return model


def _stamps(path: str) -> "list[list[Any]]":
    """Return what changes when a file, or a file of a folder, is replaced or written to."""
    if not os.path.isdir(path):
        return [[os.path.realpath(path), *_stamp(path)]]
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(folder, name) for name in names if _counts(name)]
    return [
        [os.path.relpath(file, path), os.path.realpath(file), *_stamp(file)]
        for file in sorted(files)
    ]


def _counts(name: str) -> bool:
    """Tell whether a file can change an answer; desktops and people write the others."""
    return not name.startswith(".") and not name.lower().endswith((".md", ".png", ".jpg"))


def _stamp(file: str) -> "list[int]":
    try:
        found = os.stat(file)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _versions() -> "list[str]":
    from importlib import metadata

    found = []
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return found


def _hold(note: str, key: str) -> int:
    """Hold a folder's note for the life of this process.

    Returns:
        The descriptor that must stay open.
    """
    while True:
        descriptor = os.open(note, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(note), os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"key": key}).encode(), 0)
                return descriptor
        os.close(descriptor)  # somebody removed it between the open and the lock


def remove_old_folders(root: str, key: str, mine: str) -> None:
    """Remove folders that nobody uses: of this key, older than a month, or beyond the limit."""
    found = []
    for name in os.listdir(root):
        folder = os.path.join(root, name[: -len(".json")])
        if name.endswith(".json") and folder != mine:
            with suppress(OSError):
                found.append((os.stat(f"{folder}.json").st_mtime, folder))
    room = _MOST_BYTES - _size(mine)
    for used, folder in sorted(found, reverse=True):
        size = _size(folder)
        stale = _key_of(folder) == key or time.time() - used > _OLDEST_SECONDS
        if (stale or size > room) and _remove(folder):
            continue
        room -= size


def _key_of(folder: str) -> "str | None":
    try:
        with open(f"{folder}.json", encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found.get("key") if isinstance(found, dict) else None


def _size(folder: str) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def _remove(folder: str) -> bool:
    """Remove a folder and its note unless a server uses it."""
    try:
        descriptor = os.open(f"{folder}.json", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        os.unlink(f"{folder}.json")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


MENDS = (
    _own_the_folder,
    _save_whole,
)
