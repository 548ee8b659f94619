"""Folders of models and of adapters on this machine, for whoever names one amiss."""

import difflib
import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from langchain_car_vllm.models.model_files import is_file

MODEL_MARK, ADAPTER_MARK = "config.json", "adapter_config.json"
"""The file that makes a folder one of a model, or one of an adapter."""
_NEAREST = 3
_MOST_ENTRIES = 1000


def folder_called(text: str, mark: str) -> str | None:
    """Return the path of the folder that a text names without a path's beginning, None for none.

    Args:
        text: It may end with a slash, as the shell completes it, or name a file of the folder.
        mark: The file that the folder holds.
    """
    path = Path(text.strip().removeprefix("file://"))
    for folder in (path, path.parent) if is_file(path) else (path,):
        if is_file(folder / mark):
            return str(folder) if folder.is_absolute() else f"./{folder}"
    return None


def near_folders(path: Path, mark: str) -> tuple[str, ...]:
    """Return the folders that may be meant by a path which is none of them, at most three."""
    if is_file(path.parent / mark):
        return (str(path.parent),)
    inside = folders_in(path, mark)[:_NEAREST]
    if inside or os.path.lexists(path):
        return tuple(str(path / name) for name in inside)
    found = difflib.get_close_matches(
        path.name.lower(), folders_in(path.parent, mark), n=_NEAREST, cutoff=0.4
    )
    return tuple(str(path.parent / name) for name in found)


def tell_beside(path: Path, mark: str, kind: str) -> str:
    """Return what lies where a folder is missing, in words: which part of its path is wrong."""
    held = ", ".join(f"`{name}`" for name in folders_in(path.parent, mark)[:_NEAREST])
    if held:
        return f"`{path.parent}` holds {held}"
    state = f"exists, but has no {kind}" if os.path.isdir(path.parent) else "is missing as well"  # noqa: PTH112 - takes any text
    return f"`{path.parent}` {state}"


def folders_in(folder: Path, mark: str) -> list[str]:
    """Return the names of the folders in a folder that hold a file."""
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, _MOST_ENTRIES)]
        return sorted(name for name in names if is_file(folder / name / mark))
    return []
