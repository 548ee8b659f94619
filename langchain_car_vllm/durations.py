"""Durations as people write them."""

import re

from langchain_car_vllm.errors import ConfigurationError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_HINT = 'write seconds, or text such as "30s", "10m" or "2h"'
_FOREVER = ", or -1 for forever"


def seconds(value: str | float, name: str, *, lowest: float = 0) -> float:
    """Return a duration in seconds, -1 for one that never ends where `lowest` allows it.

    Args:
        value: Seconds, or a number with `s`, `m`, `h` or `d`.
        name: The setting, for the error.
        lowest: The smallest value; between it and 0 nothing is allowed.

    Raises:
        ConfigurationError: It is not such a duration.
    """
    forever = _FOREVER if lowest < 0 else ""
    hint = f"{_HINT}{forever}"
    try:
        duration = float(value)
    except (TypeError, ValueError):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(value))
        if match is None:
            raise ConfigurationError(
                f"`{name}` must be a duration, not `{value}`", hint=hint
            ) from None
        duration = float(match[1]) * _UNITS[match[2]]
    if duration != duration or (duration < 0 and duration != lowest):  # noqa: PLR0124 - NaN
        raise ConfigurationError(f"`{name}` must be 0 or more{forever}, not `{value}`", hint=hint)
    return duration
