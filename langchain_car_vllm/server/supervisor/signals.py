"""Signals as messages: the supervisor's only way to be told something from outside."""

import os
import select
import signal
from types import FrameType

_USER = (signal.SIGTERM, signal.SIGINT)


class SignalInbox:
    """Waits for the time to pass or for a signal to come, whichever is first.

    SIGTERM asks to stop, SIGUSR1 asks to make room when idle, SIGUSR2 to go on with less memory,
    SIGCHLD wakes up.

    Attributes:
        stop_requested: Whether a user asked to stop.
        eviction_requested: Whether another model needs the memory.
        shrink_requested: Whether another model needs what this one can do without.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self.eviction_requested = False
        self.shrink_requested = False
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (*_USER, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(number, self._note)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or at once when a signal comes."""
        ready, _, _ = select.select([self._reading], [], [], max(0.0, seconds))
        if ready:
            os.read(self._reading, 4096)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number in _USER:
            self.stop_requested = True
        elif number == signal.SIGUSR1:
            self.eviction_requested = True
        elif number == signal.SIGUSR2:
            self.shrink_requested = True
