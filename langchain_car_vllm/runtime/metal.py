"""What Metal gives: its own figure, asked once for each install, Mac and macOS, and kept.

Only MLX can ask, and importing it takes a second, so whoever starts a server asks and everybody
else reads what was kept. Where nothing answers, that is kept for some minutes.
"""

import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from langchain_car_vllm import paths
from langchain_car_vllm.runtime.commands import clean_environment
from langchain_car_vllm.runtime.console_scripts import installed_version, interpreter_of
from langchain_car_vllm.support.json_objects import read_json_object
from langchain_car_vllm.support.programs import ask_program
from langchain_car_vllm.support.replaced_files import replaced_file

_FILE = "metal.json"
_SECONDS = 60.0
_UNANSWERED_SECONDS = 600.0
_ASK = (
    "import mlx.core as mx; info = getattr(mx, 'device_info', None) or mx.metal.device_info; "
    "print('bytes', int(info()['max_recommended_working_set_size']))"
)
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
    if platform.system() != "Darwin":
        return share
    kept, chosen = _figure_in(_note()), _wired_limit_mb() * _MIB
    if kept is None and chosen > 0:
        return min(chosen, total)
    if kept is None:
        return min(share, int(total * (_SMALL_SHARE if total < _SMALL_MAC else _LARGE_SHARE)))
    figure = int(kept["bytes"])
    return figure if chosen else min(share, figure)


def known_working_set() -> int | None:
    """Return Metal's figure in bytes, None where it has not been asked, or is not there."""
    kept = _figure_in(_note()) if platform.system() == "Darwin" else None
    return int(kept["bytes"]) if kept else None


def learn_working_set(binary: Path) -> None:
    """Ask Metal through an install's own MLX, unless that is known; nothing needs an answer."""
    if platform.system() != "Darwin":
        return
    try:
        identity = _identity(binary)
    except (OSError, RuntimeError, ValueError):  # a sandbox does not tell of the memory
        return
    note = _note()
    kept, unanswered = _figure_in(note), note.get("unanswered")
    if _is_about(identity, kept) or (_is_recent(unanswered) and _is_about(identity, unanswered)):
        return
    interpreter = interpreter_of(binary)
    if interpreter is None:
        return
    if figure := _ask(interpreter):
        _write({"unanswered": unanswered, **identity, "bytes": figure})
    else:
        _write({**(kept or {}), "unanswered": {**identity, "at": time.time()}})


def _is_about(identity: dict[str, Any], kept: Any) -> bool:
    return isinstance(kept, dict) and all(kept.get(name) == of for name, of in identity.items())


def _is_recent(unanswered: Any) -> bool:
    at = unanswered.get("at") if isinstance(unanswered, dict) else None
    return isinstance(at, float) and 0 <= time.time() - at < _UNANSWERED_SECONDS


def _ask(interpreter: Path) -> int | None:
    # The packages that the supervisor was given are not those of the install.
    done = ask_program([interpreter, "-c", _ASK], _SECONDS, clean_environment())
    last = (done.stdout if done else "").strip().rpartition("\n")[2].split()
    known = len(last) == 2 and last[0] == "bytes" and last[1].isdecimal()  # noqa: PLR2004
    return int(last[1]) if known else None


def _identity(binary: Path) -> dict[str, Any]:
    """Return what the figure depends on."""
    return {"binary": str(binary), "mlx": installed_version(binary, "mlx"), **_machine()}


def _machine() -> dict[str, Any]:
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


def _file() -> Path:
    return paths.car_home() / "run" / _FILE


def _figure_in(kept: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was kept, None where it was asked of another macOS or another Mac."""
    try:
        is_figure = isinstance(kept["bytes"], int) and kept["bytes"] > 0
        is_from_here = _is_about(_machine(), kept)
    except (OSError, RuntimeError, ValueError, KeyError):
        return None
    return kept if is_figure and is_from_here else None


def _note() -> dict[str, Any]:
    """Return the file, nothing where it cannot be read."""
    try:
        return read_json_object(_file().read_bytes()) or {}
    except (OSError, RuntimeError, ValueError):
        return {}


def _write(kept: dict[str, Any]) -> None:
    file = _file()
    with suppress(OSError):
        paths.make_private(file.parent)
        with replaced_file(file, many_writers=True) as note:
            note.write(json.dumps(kept).encode())
