"""Versions of `vllm-mlx`: which ones are used, and what older ones lack.

Read from the wheels of vllm-mlx 0.2.9 to 0.6.0.
"""

import logging
from functools import cache
from pathlib import Path

from langchain_car_vllm.support.version_numbers import Version, is_at_least

log = logging.getLogger(__name__)

# Below it, every generation fails with `RuntimeError: There is no Stream(gpu, 0)`.
MINIMUM: Version = (0, 3, 0)
# The one that everything here is written for.
RECOMMENDED: Version = (0, 6, 0)

_LACKS = (
    ((0, 4, 0), "requests cannot queue: a second concurrent request is refused"),
    ((0, 5, 0), "structured output may be invalid"),
    ((0, 5, 0), "generation may fail with `There is no Stream(gpu)`"),
    ((0, 6, 0), "an engine failure looks like an empty answer"),
    ((0, 6, 0), "streamed arguments of tool calls may lose their types"),
)


def is_of_tested_minor(version: str | None) -> bool:
    """Return whether a version is of the minor that everything here is written for, or newer."""
    return version is not None and is_at_least(version, (*RECOMMENDED[:2], 0))


def version_warning(version: str | None, binary: Path | None = None) -> str | None:
    """Return one sentence about what a version lacks, None where it lacks nothing."""
    if version is None or is_at_least(version, RECOMMENDED):
        return None
    lacking = "; ".join(lack for since, lack in _LACKS if not is_at_least(version, since))
    newer = ".".join(map(str, RECOMMENDED))
    where = f" in `{binary}`" if binary else ""
    return (
        f"vllm-mlx {version}{where} is older than {newer}: {lacking}. "
        "Run `car-vllm install --upgrade`."
    )


@cache
def warn_about(version: str | None, binary: Path | None = None) -> None:
    """Log what a version lacks, once per process."""
    if warning := version_warning(version, binary):
        log.warning("%s", warning)
