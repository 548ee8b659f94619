"""Starts `vllm-mlx` and makes sure that it never outlives its supervisor.

A copy of this file and of the folder `mends` runs under the Python of the server's own
installation, so both use the standard library of Python 3.10 and nothing else:

    python launch.py MARKER run|exec BINARY ARGUMENT...
    python launch.py check

`run` executes the console script in this process, mended; `exec` replaces the process by a binary
that is not a Python script; `check` imports what would be mended and prints what became of each
mend. The environment carries what must not be seen in the process list:
`CAR_VLLM_LAUNCH_KEY` (the API key, where there is one), `CAR_VLLM_LAUNCH_PIPE` (the descriptor that
reaches its end when the supervisor is gone), `CAR_VLLM_LAUNCH_PARENT` (the supervisor's process id)
and `CAR_VLLM_LAUNCH_KERNELS` (the folder of what MLX compiles for the CPU).
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1
_MOST_DESCRIPTORS = 256
_WATCHER = "read -r _; kill -9 0"


def main() -> None:
    """Run the server in this process, or look what would be mended in it."""
    if sys.argv[1:] == ["check"]:
        _print_mends()
        return
    _, mode, binary, *arguments = sys.argv[1:]
    key = os.environ.pop("CAR_VLLM_LAUNCH_KEY", None)
    pipe = int(os.environ.pop("CAR_VLLM_LAUNCH_PIPE"))
    parent = int(os.environ.pop("CAR_VLLM_LAUNCH_PARENT"))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _die_with(parent)
    _leave_watcher(pipe)
    if key is not None:
        arguments += ["--api-key", key]
    if mode == "exec":
        try:
            os.execv(binary, [binary, *arguments])  # noqa: S606
        except FileNotFoundError:
            sys.exit(f"Error: what the first line of `{binary}` names is not there")
    sys.argv = [binary, *arguments]
    if arguments[0] == "download" or os.environ.pop("CAR_VLLM_LAUNCH_TEXT_ONLY", ""):
        # Its import takes as long as all others together, and text models never use it.
        sys.modules["torch"] = None  # type: ignore[assignment]
    _keep_temporary_files_apart()
    _install_mends("mends.json" if arguments[0] == "serve" else None)
    runpy.run_path(binary, run_name="__main__")


def _keep_temporary_files_apart() -> None:
    """Have Python's temporary files, such as pictures, in the folder that is emptied at the end.

    MLX, which asks for TMPDIR, compiles for the CPU in a folder that lasts, for the next start: a
    session's would be gone one day, and below the system's it may meet what another user made.
    """
    own = os.path.join(os.path.dirname(__file__), "tmp")
    kernels = os.environ.pop("CAR_VLLM_LAUNCH_KERNELS", "")
    if os.environ.get("TMPDIR") == own:
        tempfile.tempdir = own
        os.environ["TMPDIR"] = kernels


def _die_with(parent: int) -> None:
    """Have Linux kill this process when the supervisor's main thread ends; survives `exec`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _leave_watcher(pipe: int) -> None:
    """Leave a process in this group that kills all of it when the supervisor is gone.

    No thread of this process could: it waits for the interpreter, and it dies with the process
    while what the server started lives on.
    """
    if os.fork():
        os.close(pipe)
        return
    os.dup2(pipe, 0)
    os.closerange(3, _MOST_DESCRIPTORS)
    os.execv("/bin/sh", ["sh", "-c", _WATCHER, sys.argv[1]])  # noqa: S606


def _install_mends(record: "str | None") -> Any:
    """Have the modules of the server's installation mended as they are imported.

    Args:
        record: Name of the file that tells what became of each mend, None for none.
    """
    sys.path[0] = folder = os.path.dirname(os.path.abspath(__file__))
    mends = importlib.import_module("mends.catalogue").MENDS
    finder_class = importlib.import_module("mends.importing").MendFinder
    sys.path.pop(0)
    finder = finder_class(mends, record and os.path.join(folder, record))
    sys.meta_path.insert(0, finder)
    return finder


def _print_mends() -> None:
    finder = _install_mends(None)
    for module in finder.modules:
        with suppress(ImportError, NotImplementedError):
            importlib.import_module(module)
    print(json.dumps(finder.states))


if __name__ == "__main__":
    main()
