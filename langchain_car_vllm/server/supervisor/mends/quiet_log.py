"""Keeps out of the log what the supervisor's own looks and idle connections write into it."""

import logging
import re
from typing import Any

from .mend import find, mend

_POLLED = re.compile(r'"GET /(?:health|v1/status|v1/models)\b[^"]*" 200')
_GUARD = re.compile(
    r"\[disconnect_guard\] "
    r"(?:poll #\d+ disconnected=False|START|first chunk|generator exhausted|CLEANUP)"
)


class NoiseFilter(logging.Filter):
    """Drops the lines of a pattern, unless they tell of a warning."""

    def __init__(self, pattern: "re.Pattern[str]") -> None:
        super().__init__()
        self._pattern = pattern

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is worth a line."""
        return record.levelno > logging.INFO or not self._pattern.search(record.getMessage())


@mend("access-log", "uvicorn.config", "uvicorn 0.54")
def _drop_polls(module: Any) -> None:
    """Leave successful looks at the server's health out of the access log."""
    config = find(module, "Config")
    configure = find(config, "configure_logging")

    def patched(self: Any) -> None:
        configure(self)
        logger = logging.getLogger("uvicorn.access")
        if not any(isinstance(known, NoiseFilter) for known in logger.filters):
            logger.addFilter(NoiseFilter(_POLLED))

    config.configure_logging = patched


@mend("connection-log", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _drop_guard(module: Any) -> None:
    """Leave the ticking of the watch over connections out of the log."""
    find(module, "_disconnect_guard", "raw_request")
    module.logger.addFilter(NoiseFilter(_GUARD))


MENDS = (
    _drop_polls,
    _drop_guard,
)
