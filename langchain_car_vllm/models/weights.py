"""The weights that the server loads of a model, and whether they are whole."""

import json
import math
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.model_files import (
    CLOUD_HINT,
    POINTER,
    POINTER_HINT,
    POINTER_REASON,
    file_error,
    is_in_cloud,
    open_regular,
    read_bytes,
)

INDEX = "model.safetensors.index.json"
# On the route for text, and on the one for media.
TEXT_WEIGHTS = "model*.safetensors"
MEDIA_WEIGHTS = "*.safetensors"
_ONE_FILE = "model.safetensors"
_UNREAD = "consolidated.safetensors"
_SHARD = re.compile(r"(.*?)(\d{1,9})-of-(\d{1,9})\.safetensors", re.ASCII)
_MOST_SHARDS = 10_000
# Of a number in a tensor; those of less than a byte are not known here.
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_LENGTH = struct.Struct("<Q")
_MOST_HEADER = 100_000_000
_POINTER_SIZE = 1024
_MB = 1_000_000


class Damage(NamedTuple):
    """What is wrong with a file of weights, and what to do about it."""

    reason: str
    hint: str


IS_POINTER = Damage(POINTER_REASON, POINTER_HINT)
"""What is wrong with a file that `is_pointer` tells."""


def weight_names(
    names: Collection[str], *, multimodal: bool, index: Mapping[str, Any] | None = None
) -> list[str]:
    """Return which files of a model the server loads weights from (vllm-mlx 0.6.0).

    Args:
        names: All files of the model.
        multimodal: Whether the server takes its route for media, where the index decides.
        index: What `model.safetensors.index.json` holds, None where there is none.
    """
    if not multimodal:
        return [name for name in names if is_weight(name, TEXT_WEIGHTS)]
    if index is not None and (listed := [n for n in shard_names(index) if n in names]):
        return listed
    return [name for name in names if is_weight(name, MEDIA_WEIGHTS)]


def is_weight(name: str, pattern: str) -> bool:
    """Return whether a file's name is one that the server loads; it looks into no other folder.

    Nor at hidden files: macOS puts one beside each file on disks of other systems (`._name`).
    """
    is_seen = "/" not in name and not name.startswith(".")
    return is_seen and fnmatchcase(name, pattern) and not name.endswith(_UNREAD)


def shard_names(index: Mapping[str, Any]) -> list[str]:
    """Return the files that an index of weights names, sorted; what names none is left out."""
    found = index.get("weight_map")
    values: Iterable[Any] = found.values() if isinstance(found, dict) else ()
    return sorted({name for name in values if isinstance(name, str) and is_plain(name)})


def indexed_shards(index: Mapping[str, Any] | None, names: Collection[str]) -> list[str]:
    """Return the files that the weights are in by their index, nothing where it says nothing.

    Nor where it was left behind by an earlier form of the model: a converter may write other files
    beside it. None of those that it names is there then, and others are whole. No route of the
    server goes by such an index.

    Args:
        index: What `model.safetensors.index.json` holds, None where there is none.
        names: All files of the model.
    """
    shards = shard_names(index or {})
    if any(shard in names for shard in shards):
        return shards
    # What lies beside the weights, such as a part for pictures, is counted by itself.
    stems = {"model-", *(parts[1] for parts in map(_SHARD.fullmatch, shards) if parts)}
    found = {name: _SHARD.fullmatch(name) for name in names if is_weight(name, TEXT_WEIGHTS)}
    counted = [name for name, parts in found.items() if parts and parts[1] in stems]
    is_whole = _ONE_FILE in names or (counted and not missing_shards(counted))
    return [] if is_whole else shards


def missing_shards(names: Collection[str]) -> list[str]:
    """Return the parts of weights that are not there, although the names of others count them.

    Args:
        names: The files of weights, such as `model-00001-of-00004.safetensors`.
    """
    counted = {(m[1], m[3]) for m in map(_SHARD.fullmatch, names) if m}
    missing = []
    for stem, total in sorted(counted):

        def name(number: int, stem: str = stem, total: str = total) -> str:
            return f"{stem}{number:0{len(total)}}-of-{total}.safetensors"

        first = 0 if name(0) in names else 1
        most = min(int(total), _MOST_SHARDS + 1)  # nobody has as many: the last is missing
        missing += [part for n in range(most) if (part := name(first + n)) not in names]
    return missing


def is_plain(name: str) -> bool:
    """Return whether a name of somebody else's stays inside the folder that it is joined to."""
    parts = name.split("/")
    return bool(name) and "\0" not in name and not any(part in ("", ".", "..") for part in parts)


def find_damage(path: Path) -> Damage | None:
    """Return what is wrong with a file of weights, None where its header and its size agree.

    Args:
        path: The file; only its beginning is read.
    """
    try:
        found = path.stat()
        if is_in_cloud(found):
            return Damage("is stored in a cloud, not on this disk", CLOUD_HINT)
        return _damage(path, found.st_size, found.st_mtime_ns, found.st_ino)
    except (OSError, ValueError) as error:
        wrong = file_error(path, error)
        if wrong.is_missing:
            return Damage("is a broken link", _AGAIN)
        return Damage(f"cannot be read: {getattr(error, 'strerror', error)}", wrong.hint or _AGAIN)


# What somebody else's header can do to whoever believes it.
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(RecursionError, OverflowError, MemoryError),
)
_AGAIN = "download the model again, or remove the file if it does not belong to the model"


@lru_cache(maxsize=4096)
def _damage(path: Path, size: int, _changed: int, _inode: int) -> Damage | None:
    """Read the header of a file as often as it changes.

    Raises:
        OSError: It cannot be read, which may be over the next time.
    """
    if size == 0:
        return Damage("is empty", _AGAIN)
    if is_pointer(path, size):
        return IS_POINTER
    try:
        with path.open("rb") as file:
            length = _header_length(file.read(_LENGTH.size), size)
            header = json.loads(file.read(length)) if length else None
        end = _end_of_tensors(header)
    except _UNREADABLE:
        end = None
    if end is None:
        return Damage("is not in the safetensors format", _AGAIN)
    whole = _LENGTH.size + length + end
    if size < whole:
        return Damage(f"was cut off: {_size(size)} of {_size(whole)}", _AGAIN)
    return None


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a file of weights, nothing where it cannot be read."""
    try:
        with open_regular(path) as file:
            found = path.stat()
            if is_in_cloud(found):
                return {}
            length = _header_length(file.read(_LENGTH.size), found.st_size)
            header = json.loads(file.read(length)) if length else {}
        return {
            name: [int(size) for size in entry["shape"]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, *_UNREADABLE):
        return {}


def is_pointer(path: Path, size: int) -> bool:
    """Return whether a file is only Git's note of a large one that was not fetched."""
    if size > _POINTER_SIZE:
        return False
    try:
        return read_bytes(path, _POINTER_SIZE).startswith(POINTER)
    except UnservableModelError:
        return False


def _header_length(first: bytes, size: int) -> int:
    if len(first) < _LENGTH.size:
        return 0
    (length,) = _LENGTH.unpack(first)
    return int(length) if length <= min(size, _MOST_HEADER) else 0


def _end_of_tensors(header: Any) -> int | None:
    """Return where the last tensor ends, None where the header names none.

    Raises:
        ValueError: A tensor contradicts itself.
    """
    if not isinstance(header, dict):
        return None
    ends = [_end_of_tensor(entry) for name, entry in header.items() if name != "__metadata__"]
    return max(ends, default=None)


def _end_of_tensor(entry: Any) -> int:
    """Return where a tensor ends; the server reads as many bytes as its shape says.

    Raises:
        ValueError: It contradicts itself.
    """
    begin, end = entry["data_offsets"]
    numbers = (begin, end, *entry["shape"])
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(numbers)
    size = _BYTES.get(entry["dtype"])
    if begin > end or (size is not None and math.prod(entry["shape"]) * size != end - begin):
        raise ValueError(entry)
    return int(end)


def _size(count: int) -> str:
    return f"{count / _MB:.1f} MB" if count >= _MB else f"{count} bytes"
