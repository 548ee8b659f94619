"""What a caller learns of a call while it lasts: `Progress`, its stage and its figures."""

from collections.abc import Callable
from dataclasses import dataclass
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
