"""Constrained answers on a machine without Metal."""

from typing import Any

from .mend import find, mend


@mend("grammar-kernel", "llguidance.mlx", "llguidance 1.9")
def _run_grammars_on_cpu(module: Any) -> "str | None":
    """Give llguidance a NumPy kernel where MLX has no Metal, or every grammar is a 500."""
    find(module, "apply_token_bitmask")
    import mlx.core

    if mlx.core.metal.is_available():
        return "this machine has Metal"
    module.apply_token_bitmask = _apply_token_bitmask
    return None


def _apply_token_bitmask(logits: Any, mask: Any) -> Any:
    """Set the logits of forbidden tokens to minus infinity.

    Args:
        logits: MLX array of shape (vocabulary,) or (rows, vocabulary).
        mask: NumPy array of int32 words, one bit per token, of one row or of as many as `logits`.
    """
    import mlx.core as mx
    import numpy as np

    rows = logits if logits.ndim == 2 else logits[None]  # noqa: PLR2004
    words = np.atleast_2d(np.ascontiguousarray(mask)).view(np.uint8)
    allowed = np.unpackbits(words, axis=-1, bitorder="little")
    missing = rows.shape[-1] - allowed.shape[-1]
    if missing > 0:
        allowed = np.pad(allowed, ((0, 0), (0, missing)))
    bits = mx.array(allowed[:, : rows.shape[-1]].astype(bool))
    return mx.where(bits, rows, mx.array(-float("inf"), rows.dtype))


MENDS = (_run_grammars_on_cpu,)
