"""Whether the files of a model in a folder of the user's are still those that were loaded.

Whoever trains or fuses writes new weights to the same place, and wants these to answer.
"""

import hashlib
import json
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.adapter import CONFIG, WEIGHTS
from langchain_car_vllm.models.model_files import list_folder

# A program may keep files of its own in the folder.
_READ = (
    *(".safetensors", ".safetensors.index.json", ".jinja", ".model", ".tiktoken"),
    *("config.json", "tokenizer.json", "tokens.json", "tokens_map.json", "chat_template.json"),
    *("vocab.json", "vocab.txt", "merges.txt"),
)
_FRESH_SECONDS = 1.0
_WRITING_SECONDS = 2.0


class FileStamp(NamedTuple):
    """Files as they were at a moment.

    Attributes:
        digest: Changes when one of them is written or replaced.
        written_at: When the last one was written, in seconds since the epoch.
    """

    digest: str
    written_at: float

    def is_being_written(self) -> bool:
        """Tell whether somebody may still be writing."""
        return abs(time.time() - self.written_at) < _WRITING_SECONDS


def stamp_files(source: str, adapter: str | None = None) -> FileStamp | None:
    """Return the stamp of the files that a server reads, None for those of a repository.

    These change with `car-vllm pull --update` alone, which says what it means for servers.

    Args:
        source: A Hub repository, or a directory.
        adapter: The same of an adapter. Of its folder only what is loaded counts: training puts
            other files beside that.
    """
    stamps: list[tuple[str, int, int]] = []
    for folder, counts in ((source, _is_read), (adapter or "", {CONFIG, WEIGHTS}.__contains__)):
        if not folder.startswith("/"):
            continue
        with suppress(UnservableModelError):  # whoever loads it says what is wrong
            for name in sorted(list_folder(Path(folder))):
                with suppress(OSError):
                    if counts(name):
                        found = Path(folder, name).stat()
                        stamps.append((name, found.st_size, found.st_mtime_ns))
    if not stamps:
        return None
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    return FileStamp(digest, max(changed for _, _, changed in stamps) / 1e9)


def _is_read(name: str) -> bool:
    return name.endswith(_READ) and not name.startswith(".")


def recent_stamp(source: str, adapter: str | None = None) -> FileStamp | None:
    """Return a stamp that is a second old at most: each request asks for it."""
    return _stamp_at(int(time.monotonic() / _FRESH_SECONDS), source, adapter)


def current_stamp(source: str, adapter: str | None = None) -> FileStamp | None:
    """Return a stamp of this moment, which those that ask for a recent one get from now on."""
    _stamp_at.cache_clear()
    return recent_stamp(source, adapter)


@lru_cache(maxsize=64)
def _stamp_at(_moment: int, source: str, adapter: str | None) -> FileStamp | None:
    return stamp_files(source, adapter)
