"""Who uses the server: the supervisor's view of the client records."""

import math
import os
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.server.client_record import (
    is_client_alive,
    keepers,
    promise_path,
    remove_dead_marks,
    requesters,
)
from langchain_car_vllm.server.idle import Use


class ClientRecords:
    """The supervisor's view of the records: every change is an event on its own clock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, Use]] = {}

    @property
    def uses(self) -> list[Use]:
        """The clients as last polled."""
        return [use for _, use in self._seen.values()]

    def poll(self, now: float) -> bool:
        """Look at all records.

        Returns:
            Whether there was an event.
        """
        found: dict[str, tuple[int, Use]] = {}
        happened = False
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                with suppress(FileNotFoundError, ValueError):
                    stamp = entry.stat().st_mtime_ns
                    before = self._seen.get(entry.name)
                    if before is not None and before[0] == stamp:
                        found[entry.name] = before
                        continue
                    keep_alive = float(Path(entry.path).read_text(encoding="ascii"))
                    found[entry.name] = stamp, Use(keep_alive, now)
                    happened = True
        self._seen = found
        return happened

    def requesters(self) -> list[int]:
        """Return the process ids of the clients that have requests under way."""
        return requesters(self._folder)

    def keepers(self) -> list[int]:
        """Return the process ids of those that keep the server in memory, in use or not."""
        return keepers(self._folder)

    def forget_dead(self, before: float = math.inf) -> None:
        """Remove the records of processes that are gone.

        Args:
            before: Those whose wish ran out by then; a dead client's wish holds until it does.
        """
        for name, (_, use) in list(self._seen.items()):
            ran_out = use.keep_alive >= 0 and use.last_event + use.keep_alive < before
            if (ran_out or before == math.inf) and not is_client_alive(name):
                self._remove(name)

    def forget_all(self) -> None:
        """Remove all records: the wishes of one life bind no other."""
        remove_dead_marks(self._folder)
        promise_path(self._folder).unlink(missing_ok=True)
        for name in list(self._seen):
            self._remove(name)

    def _remove(self, name: str) -> None:
        self._seen.pop(name)
        (self._folder / name).unlink(missing_ok=True)
