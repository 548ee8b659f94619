"""Keeping a Mac from falling asleep while it works for somebody.

`caffeinate -i` lets the screen turn dark and forbids idle sleep alone; closing the lid still
sends the Mac to sleep. `-w` ends it with this process, however that dies.
"""

import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from langchain_car_vllm.environment import CAR_VLLM_MLX_CAFFEINATE

PLATFORM: str = sys.platform
PROGRAM: str = "/usr/bin/caffeinate"
_BETWEEN_STARTS = 60.0


class Wakefulness:
    """At most one `caffeinate` of this process; nothing where there is none.

    One that ends by itself is started once a minute at most: its end wakes a supervisor, which
    looks again at once.

    Args:
        linger: Seconds that it outlives the last work, so that a chain of requests needs one.
    """

    def __init__(self, linger: float = 0.0) -> None:
        self._linger = linger
        self._process: subprocess.Popen[bytes] | None = None
        self._worked_at = 0.0
        self._again_at = 0.0
        self.is_possible = PLATFORM == "darwin" and CAR_VLLM_MLX_CAFFEINATE.read()

    @property
    def keeper(self) -> int | None:
        """The process id of the `caffeinate` that was started last, None for none."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        """Keep awake until the end of the block."""
        self.look(is_working=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the machine sleep."""
        self.end()

    def look(self, *, is_working: bool) -> None:
        """Keep the machine awake while there is work, and let it sleep a while after."""
        if not self.is_possible:
            return
        now = time.monotonic()
        if is_working:
            self._worked_at = now
            if self._process is None or (self._process.poll() is not None and now > self._again_at):
                self._again_at = now + _BETWEEN_STARTS
                self._process = self._start()
        elif now - self._worked_at > self._linger:
            self.end()

    def end(self) -> None:
        """Let the machine sleep."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> "subprocess.Popen[bytes] | None":
        try:
            return subprocess.Popen(
                [PROGRAM, "-i", "-w", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except (FileNotFoundError, PermissionError):
            self.is_possible = False
        except OSError:  # too many processes or files, for instance: the next look tries again
            pass
        return None
