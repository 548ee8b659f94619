"""The question for Metal's figure: asked once for each install, Mac and macOS, and kept.

Only MLX can ask, and importing it takes a second, so whoever starts a server asks and everybody
else reads what was kept. Where nothing answers, that is kept for some minutes.
"""

import json
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from langchain_car_vllm import paths
from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.runtime.commands import clean_environment
from langchain_car_vllm.runtime.console_scripts import installed_version, interpreter_of
from langchain_car_vllm.runtime.metal import figure_in, is_about, note_file, read_note, this_machine
from langchain_car_vllm.support.programs import ask_program
from langchain_car_vllm.support.replaced_files import replaced_file

_SECONDS = 60.0
_UNANSWERED_SECONDS = 600.0
_ASK = (
    "import mlx.core as mx; info = getattr(mx, 'device_info', None) or mx.metal.device_info; "
    "print('bytes', int(info()['max_recommended_working_set_size']))"
)


def learn_working_set(binary: Path) -> None:
    """Ask Metal through an install's own MLX, unless that is known; nothing needs an answer."""
    if platform.system() != "Darwin":
        return
    try:
        identity = _identity(binary)
    except (OSError, RuntimeError, ValueError):  # a sandbox does not tell of the memory
        return
    note = read_note()
    kept, unanswered = figure_in(note), note.get("unanswered")
    if is_about(identity, kept) or (_is_recent(unanswered) and is_about(identity, unanswered)):
        return
    interpreter = interpreter_of(binary)
    if interpreter is None:
        return
    if figure := _ask(interpreter):
        _write({"unanswered": unanswered, **identity, "bytes": figure})
    else:
        _write({**(kept or {}), "unanswered": {**identity, "at": time.time()}})


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
    return {"binary": str(binary), "mlx": installed_version(binary, "mlx"), **this_machine()}


def _write(kept: dict[str, Any]) -> None:
    file = note_file()
    with suppress(OSError, StateDirectoryError):
        paths.make_private(file.parent)
        with replaced_file(file, many_writers=True) as note:
            note.write(json.dumps(kept).encode())
