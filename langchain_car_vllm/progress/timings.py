"""The times of one call: where the seconds between the question and the end of its answer went.

Two readings of the clock belong to an answer, its first sign and its end; none to a chunk.
"""

import time
from collections.abc import Callable

from langchain_car_vllm.progress import Progress, Stage

_PREPARATION: tuple[Stage, ...] = ("install", "download", "load")
_DIGITS = 4


class Stopwatch:
    """The clock of one call; a call that is sent once more keeps it.

    Args:
        clock: Seconds that never go back.

    Attributes:
        cached_tokens: Prompt tokens from the server's cache, as its status told, with the number of
            prompt tokens that they belong to.
        server_first_token: Seconds that the server says it took to the first token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._stage_began = self._ready = clock()
        self._stage: Stage | None = None
        self._stages: dict[Stage, float] = {}
        self._queued = 0.0
        self._attempts = 0
        self._sent: float | None = None
        self._first: float | None = None
        self._is_late = False
        self.cached_tokens: tuple[int, int] | None = None
        self.server_first_token: float | None = None

    def note(self, progress: Progress) -> None:
        """Note a step of the wait for the server."""
        if progress.stage != self._stage:
            self._end_stage()
            self._stage = progress.stage

    def note_ready(self) -> None:
        """Note that the server is ready and held; what went before counts as its start."""
        self._end_stage()
        self._stage = None
        self._ready = self._clock()
        self._queued, self._attempts = 0.0, 0
        self._sent = self._first = None
        self.cached_tokens = self.server_first_token = None

    def note_sent(self, queued: float, *, arrives_late: bool) -> None:
        """Note that a request is being sent.

        Args:
            queued: Seconds that it waited for its turn.
            arrives_late: Whether the first sign of its answer is not the first token.
        """
        self._queued += queued
        self._attempts += 1
        self._is_late = arrives_late
        if self._sent is None:
            self._sent = self._clock()

    def note_first_token(self) -> None:
        """Note the first sign of the answer."""
        if self._first is None:
            self._first = self._clock()

    def tokens_from_cache(self, prompt: int) -> int | None:
        """Return how much of a prompt came from the cache, None where the server did not tell.

        Args:
            prompt: Its tokens, by which the server's status is known to speak of it.
        """
        if self.cached_tokens is None or self._attempts != 1 or self.cached_tokens[0] != prompt:
            return None
        return self.cached_tokens[1]

    def timings(self, prompt: int | None, completion: int | None) -> dict[str, float]:
        """Return the seconds of each part and the speeds, now that the answer has ended.

        Args:
            prompt: Tokens that were read, without those of the cache; None where unknown.
            completion: Tokens of the answer, None where unknown.
        """
        now = self._clock()
        sent = self._ready if self._sent is None else self._sent
        times: dict[str, float] = {"start": self._ready - self._began}
        times |= {stage: self._stages.get(stage, 0.0) for stage in _PREPARATION}
        times["queue"] = self._queued
        if self._first is not None:
            times["first_token"] = self._first - self._began
        prefill = self._prefill(sent, now)
        if prefill is not None:
            times["prefill"], times["decode"] = prefill, now - sent - prefill
            times.setdefault("first_token", sent + prefill - self._began)
        times["total"] = now - self._began
        times |= _speeds(prompt, completion, prefill, now - sent)
        return {name: round(value, _DIGITS) for name, value in times.items()}

    def _prefill(self, sent: float, now: float) -> float | None:
        """Return the seconds to the first token, None where nobody saw it."""
        if self._attempts != 1:
            return None
        if self._first is not None and not self._is_late:
            return self._first - sent
        told = self.server_first_token
        return told if told is not None and told <= now - sent else None

    def _end_stage(self) -> None:
        now = self._clock()
        if self._stage is not None:
            self._stages[self._stage] = self._stages.get(self._stage, 0.0) + now - self._stage_began
        self._stage_began = now


def _speeds(
    prompt: int | None, completion: int | None, prefill: float | None, answer: float
) -> dict[str, float]:
    """Return tokens per second; of an answer whose beginning nobody saw, over all of its time."""
    speeds: dict[str, float] = {}
    if prompt and prefill:
        speeds["prompt_tokens_per_second"] = prompt / prefill
    tokens, seconds = completion or 0, answer
    if prefill is not None:
        tokens, seconds = tokens - 1, answer - prefill  # the first one ends the prefill
    if tokens > 0 and seconds > 0:
        speeds["completion_tokens_per_second"] = tokens / seconds
    return speeds
