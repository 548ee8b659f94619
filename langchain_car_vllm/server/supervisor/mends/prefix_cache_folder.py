"""The saved prefix cache belongs to exactly what it was computed from.

The server names its folder after the model alone, so new weights at the same path, another commit
of a Hub model or other settings would read what is not theirs and answer wrongly. Here the name
is a hash of all that: the files of the model, the files that arguments name and the versions of the
software. It lies in the folder of the server key, which covers the user's settings and has one
server at a time.
"""

import hashlib
import json
import os
import secrets
import shutil
import sys
from contextlib import suppress
from typing import Any

from .mend import find, mend

FOLDER = "prefix"
_INDEX = "index.json"
_PACKAGES = ("vllm-mlx", "mlx", "mlx-lm", "mlx-vlm")


@mend("prefix-cache-folder", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _own_the_folder(module: Any) -> None:
    """Keep the saved cache under what it was computed from, never under a name of the model."""
    find(module, "_get_cache_dir")
    module._get_cache_dir = CacheFolder(os.getcwd(), sys.argv[1:]).path


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
        root: The folder of the server key.
        arguments: The server's arguments; the model is the second.
    """

    def __init__(self, root: str, arguments: "list[str]") -> None:
        self._root = os.path.join(root, FOLDER)
        self._arguments = arguments
        # Before the weights are read: what is swapped while they load is noticed below.
        self._first = self._digest()
        self._name: str | None = None

    def path(self) -> str:
        """Return the folder, the same for the life of this process; older ones of the key go."""
        if self._name is None:
            digest = self._digest()
            self._name = digest if digest == self._first else secrets.token_hex(8)
            with suppress(OSError):
                for name in set(os.listdir(self._root)) - {self._name}:
                    shutil.rmtree(os.path.join(self._root, name), ignore_errors=True)
        return os.path.join(self._root, self._name)

    def _digest(self) -> str:
        model = self._arguments[1] if len(self._arguments) > 1 else ""
        parts = {
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


MENDS = (
    _own_the_folder,
    _save_whole,
)
