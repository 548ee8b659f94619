"""What Metal gives: its own figure, as it was kept when a server was started.

`metal_question` asks for it; models are constructed without that.
"""

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from langchain_car_vllm import paths
from langchain_car_vllm.support.json_objects import read_json_object

_FILE = "metal.json"
_MIB = 2**20
_SMALL_MAC = 33 * 2**30
_SMALL_SHARE, _LARGE_SHARE = 2 / 3, 3 / 4


def working_set_limit(total: int, share: int) -> int:
    """Return what models may take of a machine's memory.

    On a Mac that is the smaller of the share and Metal's figure: the one that was kept, before that
    what recent versions of macOS give. Where the user set `iogpu.wired_limit_mb`, that is Metal's
    figure, and it counts alone.

    Args:
        total: Bytes of memory of the machine.
        share: What models may take of it where nothing else is known.
    """
    figure = likely_working_set(total)
    if figure is None:
        return share
    return figure if _wired_limit_mb() > 0 else min(share, figure)


def known_working_set() -> int | None:
    """Return Metal's figure in bytes, None where it has not been asked, or is not there."""
    kept = figure_in(read_note()) if platform.system() == "Darwin" else None
    return int(kept["bytes"]) if kept else None


def likely_working_set(total: int | None = None) -> int | None:
    """Return Metal's figure in bytes: the one that was kept, else what recent macOS gives.

    So what is decided before Metal is asked is decided in the same way afterwards.

    Args:
        total: Bytes of memory of the machine, which is asked by default.

    Returns:
        None where there is no Metal, or nobody may ask for the memory.
    """
    if platform.system() != "Darwin":
        return None
    if kept := known_working_set():
        return kept
    try:
        total = total or int(psutil.virtual_memory().total)
    except (OSError, RuntimeError, ValueError):
        return None
    if (chosen := _wired_limit_mb() * _MIB) > 0:
        return min(chosen, total)
    return int(total * (_SMALL_SHARE if total < _SMALL_MAC else _LARGE_SHARE))


def is_about(identity: dict[str, Any], kept: Any) -> bool:
    """Tell whether what was kept is about the same install and machine."""
    return isinstance(kept, dict) and all(kept.get(name) == of for name, of in identity.items())


def this_machine() -> dict[str, Any]:
    """Return what of it is about the machine: the note may have come here from another one."""
    return {
        "system": os.uname().release,
        "memory": psutil.virtual_memory().total,
        "wired_limit_mb": _wired_limit_mb(),
    }


def _wired_limit_mb() -> int:
    """Return the limit that the user set, 0 where it is the system's own."""
    import ctypes  # noqa: PLC0415 - only a Mac is asked

    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    try:
        ask = ctypes.CDLL(None).sysctlbyname
        failed = ask(b"iogpu.wired_limit_mb", ctypes.byref(value), ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return 0
    return 0 if failed else value.value


def note_file() -> Path:
    """Return where the figure is kept."""
    return paths.car_home() / "run" / _FILE


def figure_in(kept: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was kept, None where it was asked of another macOS or another Mac."""
    try:
        is_figure = isinstance(kept["bytes"], int) and kept["bytes"] > 0
        is_from_here = is_about(this_machine(), kept)
    except (OSError, RuntimeError, ValueError, KeyError):
        return None
    return kept if is_figure and is_from_here else None


def read_note() -> dict[str, Any]:
    """Return the file, nothing where it cannot be read."""
    try:
        return read_json_object(note_file().read_bytes()) or {}
    except (OSError, RuntimeError, ValueError):
        return {}
