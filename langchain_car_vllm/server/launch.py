"""Starts `vllm-mlx` and makes sure that it never outlives its supervisor.

A copy of this file runs under the Python of the server's own installation, so it uses the standard
library of Python 3.10 and nothing else:

    python launch.py MARKER run|exec BINARY ARGUMENT...

`run` executes the console script in this process, `exec` replaces the process by a binary that is
no Python script. The environment carries what must not be seen in the process list:
`CAR_VLLM_LAUNCH_KEY` (the API key, where there is one), `CAR_VLLM_LAUNCH_PIPE` (the descriptor that
reaches its end when the supervisor is gone) and `CAR_VLLM_LAUNCH_PARENT` (the supervisor's process
id).
"""

import ctypes
import importlib.abc
import importlib.machinery
import os
import runpy
import signal
import sys
import threading
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_GRACEFUL_SECONDS = 2


def main() -> None:
    """Run the server in this process."""
    _, mode, binary, *arguments = sys.argv[1:]
    key = os.environ.pop("CAR_VLLM_LAUNCH_KEY", None)
    pipe = int(os.environ.pop("CAR_VLLM_LAUNCH_PIPE"))
    parent = int(os.environ.pop("CAR_VLLM_LAUNCH_PARENT"))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _die_with(parent)
    if key is not None:
        arguments += ["--api-key", key]
    if mode == "exec":
        _leave_watcher(pipe)
        os.execv(binary, [binary, *arguments])  # noqa: S606
    threading.Thread(target=_die_at_end_of, args=(pipe,), daemon=True).start()
    sys.path.pop(0)
    sys.argv = [binary, *arguments]
    sys.meta_path.insert(0, _GrammarOnCpu())
    if arguments[0] == "serve":
        _end_requests_on_shutdown()
    runpy.run_path(binary, run_name="__main__")


def _die_with(parent: int) -> None:
    """Have Linux kill this process when the supervisor's main thread ends; survives `exec`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _leave_watcher(pipe: int) -> None:
    """Have a process beside this one watch the pipe where no kernel does it for an `exec`ed one."""
    if sys.platform != "linux" and not os.fork():
        os.closerange(3, pipe)
        os.closerange(pipe + 1, 256)
        _die_at_end_of(pipe)


def _die_at_end_of(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _end_requests_on_shutdown() -> None:
    """Give requests under way two seconds when the server is to end.

    uvicorn waits for them for ever by default, and only a shutdown that runs to its end saves the
    prefix cache.
    """
    with suppress(ImportError, AttributeError):
        import uvicorn  # noqa: PLC0415

        initialise = uvicorn.Config.__init__

        def patched(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202
            initialise(self, *args, **kwargs)
            if self.timeout_graceful_shutdown is None:
                self.timeout_graceful_shutdown = _GRACEFUL_SECONDS

        uvicorn.Config.__init__ = patched  # type: ignore[method-assign]


class _GrammarOnCpu(importlib.abc.MetaPathFinder):
    """Gives llguidance a NumPy kernel where MLX has no Metal, or every grammar is a 500."""

    def find_spec(self, fullname, path, target=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
        if fullname != "llguidance.mlx":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            execute(module)
            import mlx.core  # noqa: PLC0415

            if not mlx.core.metal.is_available():
                module.apply_token_bitmask = _apply_token_bitmask

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _apply_token_bitmask(logits, mask):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Set the logits of forbidden tokens to minus infinity.

    Args:
        logits: MLX array of shape (vocabulary,) or (rows, vocabulary).
        mask: NumPy array of int32 words, one bit per token, of one row or of as many as `logits`.
    """
    import mlx.core as mx  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    rows = logits if logits.ndim == 2 else logits[None]  # noqa: PLR2004
    words = np.atleast_2d(np.ascontiguousarray(mask)).view(np.uint8)
    allowed = np.unpackbits(words, axis=-1, bitorder="little")
    missing = rows.shape[-1] - allowed.shape[-1]
    if missing > 0:
        allowed = np.pad(allowed, ((0, 0), (0, missing)))
    bits = mx.array(allowed[:, : rows.shape[-1]].astype(bool))
    return mx.where(bits, rows, mx.array(-float("inf"), rows.dtype))


if __name__ == "__main__":
    main()
