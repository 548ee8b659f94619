"""Which of the server's two engines answers. Pure.

`auto` is continuous batching: the simple engine reads a multimodal conversation anew at each turn.
Some versions of mlx-vlm give silently wrong text in batches of multimodal requests; with those the
simple engine, which answers one request after the other, is the right one.
"""

from typing import NamedTuple

from langchain_car_vllm.errors import ServerStartError
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.support.version_numbers import is_at_least

# From the first that reads Qwen3.5 rightly, up to the first whose batches are wrong.
_BATCHING_MLX_VLM = ((0, 6, 5), (0, 6, 16))
TESTED_MLX_VLM = "mlx-vlm>={}.{}.{},<{}.{}.{}".format(*_BATCHING_MLX_VLM[0], *_BATCHING_MLX_VLM[1])


class EngineChoice(NamedTuple):
    """An engine, and what its users should know.

    Attributes:
        engine: `simple` or `batched`.
        note: Why it is not the better one and what to do about it, None where it is.
    """

    engine: str
    note: str | None = None


def choose_engine(
    spec: ServerSpec, *, multimodal: bool, mlx_vlm: str | None = None, python: str | None = None
) -> EngineChoice:
    """Return the engine: the user's choice, else the better one that the install can do.

    Args:
        spec: What the user wants.
        multimodal: Whether the model takes the multimodal route.
        mlx_vlm: The installed version of mlx-vlm, None where it is not known.
        python: The install's Python, for the cure.

    Raises:
        ServerStartError: The user wants batches that this install would answer wrongly.
    """
    wants_batches = spec.engine == "batched" or "--continuous-batching" in spec.server_args
    if spec.engine == "simple" and not wants_batches:
        return EngineChoice("simple")
    if not (multimodal or "--mllm" in spec.server_args) or is_tested(mlx_vlm):
        return EngineChoice("batched")
    problem = (
        f"mlx-vlm {mlx_vlm} gives wrong text when it answers several multimodal requests at once"
    )
    cure = f"run `uv pip install --python {python or 'PYTHON'} '{TESTED_MLX_VLM}'`"
    if wants_batches:
        raise ServerStartError(problem, hint=f'leave out `engine="batched"`, or {cure}')
    return EngineChoice(
        "simple",
        f"{problem}, so the simple engine answers one request at a time and reads each "
        f"conversation from the start; {cure}",
    )


def is_tested(mlx_vlm: str | None) -> bool:
    """Tell whether a version of mlx-vlm answers batches rightly; an unknown one is trusted."""
    oldest, newest = _BATCHING_MLX_VLM
    return mlx_vlm is None or (is_at_least(mlx_vlm, oldest) and not is_at_least(mlx_vlm, newest))
