"""Telling a caller what an installation is doing."""

import time

from langchain_car_vllm.progress import OnProgress, Progress

_TOLD = ("resolved", "downloading", "building", "prepared", "installed")


class Reporter:
    """Tells a caller what the installation is doing.

    Args:
        on_progress: Told of each step, and twice a second in between; an exception that it raises
            ends the installation.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._detail = ""

    def say(self, detail: str) -> None:
        """Report a step."""
        self._detail = detail
        self.still()

    def still(self) -> None:
        """Report that the last step goes on."""
        if self._on_progress is not None:
            elapsed = time.monotonic() - self._began
            self._on_progress(Progress("install", self._detail, elapsed=elapsed))

    def uv_line(self, line: str | None) -> None:
        """Report what uv says of its work, and that it is still at it."""
        if line is None:
            self.still()
        elif line.lower().startswith(_TOLD):
            self.say(line[0].lower() + line[1:])
