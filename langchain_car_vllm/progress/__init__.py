"""What a caller learns of a call while it lasts: `Progress`, and how it is told."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["queued", "install", "download", "load", "ready", "prefill", "generating"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a wait.

    Attributes:
        stage: What is being waited for.
        detail: One line for a person.
        done: Bytes (`download`) or tokens (`prefill`) that are done, None where unknown.
        total: How many there are in all, None where unknown.
        elapsed: Seconds since the stage began.
    """

    stage: Stage
    detail: str = ""
    done: int | None = None
    total: int | None = None
    elapsed: float = 0.0


OnProgress = Callable[[Progress], None]


class Teller:
    """Tells a caller what is news of a wait, and how long its stage has lasted.

    Args:
        on_progress: Called with what is news, None for nobody.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._stage_began = time.monotonic()
        self._last: Progress | None = None

    @property
    def stage(self) -> Stage | None:
        """The stage that was told last, None for none."""
        return self._last.stage if self._last else None

    def tell(self, progress: Progress) -> None:
        """Tell how far it is, if that is news."""
        if progress == self._last:
            return
        if self.stage != progress.stage:
            self._stage_began = time.monotonic()
        self._last = progress
        if self._on_progress is not None:
            elapsed = time.monotonic() - self._stage_began
            self._on_progress(replace(progress, elapsed=elapsed))
