"""The files of one server key."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.paths import run_root

_LOCAL_DIRECTORY = "set CAR_HOME to a local directory that you can write to"
_HINTS = {
    errno.ENOSPC: "free some disk space, or set CAR_HOME to a directory on another disk",
    errno.EDQUOT: "free some of your quota, or set CAR_HOME to a directory on another disk",
}


@dataclass(frozen=True, slots=True)
class ServerDirectory:
    """Where the run state of one server key lies."""

    path: Path

    @property
    def key(self) -> str:
        """The server key."""
        return self.path.name

    @property
    def state(self) -> Path:
        """Written by the holder of `supervisor_lock` only."""
        return self.path / "state.json"

    @property
    def start_lock(self) -> Path:
        """Held over check, spawn and handshake."""
        return self.path / "start.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor for its whole life."""
        return self.path / "supervisor.lock"

    def author_lock(self, tag: str) -> Path:
        """Held by the supervisor of that tag for its life, so that its state can be believed.

        The name never comes again, so this lock file is removed with its holder.
        """
        return self.path / f"life-{tag}.lock"

    @property
    def server_lock(self) -> Path:
        """Held by the server process itself for its whole life."""
        return self.path / "server.lock"

    @property
    def lease_lock(self) -> Path:
        """Shared by clients with a request under way, exclusive while stopping when idle."""
        return self.path / "lease.lock"

    @property
    def turn_lock(self) -> Path:
        """Held by the one request under way where the server takes one at a time."""
        return self.path / "turn.lock"

    @property
    def turns(self) -> Path:
        """Tickets of those who wait for `turn_lock`."""
        return self.path / "turns"

    @property
    def clients(self) -> Path:
        """One record per client process: its keep_alive, touched when a request ends."""
        return self.path / "clients"

    @property
    def blame(self) -> Path:
        """Crashes that a single request caused again and again, named by their times."""
        return self.path / "blame"

    @property
    def log(self) -> Path:
        """The server's output."""
        return self.path / "server.log"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's own output."""
        return self.path / "supervisor.log"

    @property
    def launcher(self) -> Path:
        """The copy of `launch.py` that outlives the client's virtual environment."""
        return self.path / "launch.py"

    def create(self) -> None:
        """Make the folders, readable by the user alone.

        Raises:
            StateDirectoryError: They cannot be made or written to, with the reason.
        """
        with explain_os_errors(self.path):
            for folder in (self.path, self.clients, self.turns):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
            if found.st_uid != os.getuid():
                raise StateDirectoryError(
                    self.path,
                    "it belongs to another user",
                    hint="set CAR_HOME to a directory of your own",
                )


def server_directory(key: str) -> ServerDirectory:
    """Return the directory of a key; nothing is created."""
    return ServerDirectory(run_root() / key)


def server_directories() -> list[ServerDirectory]:
    """Return the directories of all keys that ever had a server here."""
    root = run_root()
    with explain_os_errors(root):
        if not root.is_dir():
            return []
        return [ServerDirectory(p) for p in sorted(root.iterdir()) if (p / "state.json").is_file()]


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into a `StateDirectoryError`."""
    try:
        yield
    except OSError as error:
        raise explained(error, path) from error


def explained(error: OSError, path: Path) -> StateDirectoryError:
    """Return what an error of the operating system means for the files at `path`."""
    hint = _HINTS.get(error.errno or 0, _LOCAL_DIRECTORY)
    return StateDirectoryError(path, error.strerror or str(error), hint=hint)
