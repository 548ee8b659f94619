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
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1
_GRACEFUL_SECONDS = 2
_MOST_DESCRIPTORS = 256
_WATCHER = "read -r _; kill -9 0"


def main() -> None:
    """Run the server in this process."""
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
        os.execv(binary, [binary, *arguments])  # noqa: S606
    sys.path.pop(0)
    sys.argv = [binary, *arguments]
    sys.meta_path.insert(0, _Patches())
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


class _Patches(importlib.abc.MetaPathFinder):
    """Mends modules of the server's own installation as they are imported."""

    def find_spec(self, fullname, path, target=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
        mend = _MENDED.get(fullname)
        if mend is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            execute(module)
            mend(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _run_grammars_on_cpu(module: Any) -> None:
    """Give llguidance a NumPy kernel where MLX has no Metal, or every grammar is a 500."""
    import mlx.core  # noqa: PLC0415

    if not mlx.core.metal.is_available():
        module.apply_token_bitmask = _apply_token_bitmask


def _keep_processors_in_line(module: Any) -> None:
    """Have every row of a batch keep its own logits processors, an empty list where it has none.

    mlx-lm 0.31.3 keeps those of requests that have left a batch without any, so a constrained
    request that follows an unconstrained one runs without its grammar and somebody else's answer
    gets it; and it puts None for those who have none among others, which stops the engine for good.
    """
    for name in ("PromptProcessingBatch", "GenerationBatch"):
        batch = getattr(module, name, None)
        if batch is not None:
            _wrap(batch, "filter")
            _wrap(batch, "extend")


def _wrap(batch: Any, name: str) -> None:
    original = getattr(batch, name)

    def wrapped(self: Any, other: Any) -> None:
        _line_up(self)
        if hasattr(other, "logits_processors"):
            _line_up(other)
        original(self, other)
        _line_up(self)

    setattr(batch, name, wrapped)


def _line_up(batch: Any) -> None:
    processors = [row or [] for row in batch.logits_processors]
    batch.logits_processors = processors if any(processors) else [[] for _ in batch.uids]


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


_MENDED = {
    "llguidance.mlx": _run_grammars_on_cpu,
    "mlx_lm.generate": _keep_processors_in_line,
}


if __name__ == "__main__":
    main()
