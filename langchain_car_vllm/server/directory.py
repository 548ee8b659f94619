"""The files of one server key."""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from langchain_car_vllm.errors import CarVllmError, StateDirectoryError
from langchain_car_vllm.paths import (
    RECONNECT,
    WITHOUT_SUDO,
    car_home,
    chown_command,
    home,
    is_sudo,
    lost_disk,
    make_own_folder,
    make_with_parents,
    owner_name,
    private_parts,
    run_root,
)
from langchain_car_vllm.runtime.mounts import find_mount
from langchain_car_vllm.support.file_presence import is_folder
from langchain_car_vllm.support.os_limits import HINTS
from langchain_car_vllm.support.process_state import KeptProperty
from langchain_car_vllm.support.strict_modes import find_exposure

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOCAL_DIRECTORY = "set CAR_HOME to a local directory that you can write to"
_OWN_DIRECTORY = "set CAR_HOME to a directory of your own"
_OUTSIDE = (
    "its disk is read-only, or a sandbox blocks it: run this outside of it, or set CAR_HOME to "
    "a directory that you can write to"
)
_HINTS = HINTS | {
    errno.ENOSPC: "free some disk space, or set CAR_HOME to a directory on another disk",
    errno.EDQUOT: "free some of your quota, or set CAR_HOME to a directory on another disk",
}


class _File:
    """A path in a server's directory, made when it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set_name__(self, _: type, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, directory: "ServerDirectory", _: type) -> Path:
        path = vars(directory)[self._attribute] = directory.path / self._name
        return path


@dataclass(frozen=True)
class ServerDirectory:
    """Where the run state of one server key lies.

    Each request asks for most of the names, so they are made once.
    """

    path: Path

    @KeptProperty
    def key(self) -> str:
        """The server key."""
        return self.path.name

    state = _File("state.json")
    """Written by the holder of `supervisor_lock` only."""
    start_lock = _File("start.lock")
    """Held over check, spawn and handshake."""
    supervisor_lock = _File("supervisor.lock")
    """Held by the supervisor for its whole life."""
    server_lock = _File("server.lock")
    """Held by the server process itself for its whole life."""
    lease_lock = _File("lease.lock")
    """Shared by clients with a request under way, exclusive while stopping when idle."""
    turn_lock = _File("turn.lock")
    """Held for the time of a decision which request may be sent."""
    memory_room = _File("memory-room")
    """Bytes of memory that the running server keeps to, once they changed."""
    turns = _File("turns")
    """Tickets of the requests that wait for their turn or are under way."""
    clients = _File("clients")
    """One record per client process: its keep_alive, touched when a request ends."""
    blame = _File("blame")
    """Crashes that a single request caused again and again, named by their times."""
    log = _File("server.log")
    """The server's output."""
    supervisor_log = _File("supervisor.log")
    """The supervisor's own output."""
    mends = _File("mends.json")
    """What became of each mend of the running server."""
    prefix_caches = _File("prefix")
    """What the server saved of earlier prompts at its end, for its next start."""
    temporary = _File("tmp")
    """The server's temporary files, such as pictures of requests; emptied when it ends."""
    launcher = _File("launch.py")
    """The copy of `launch.py` that outlives the client's virtual environment."""

    def author_lock(self, tag: str) -> Path:
        """Held by the supervisor of that tag for its life, so that its state can be believed.

        The name never comes again, so this lock file is removed with its holder.
        """
        return self.path / f"life-{tag}.lock"

    def create(self) -> None:
        """Make the folders, readable by the user alone.

        Raises:
            StateDirectoryError: They cannot be made or written to, with the reason.
        """
        make_checked(self.path, self.clients, self.turns)


def make_checked(*folders: Path) -> None:
    """Make folders, and refuse what of their way through `CAR_HOME` is not the user's alone.

    Raises:
        StateDirectoryError: They cannot be made or written to, with the reason.
    """
    base = car_home()
    if broken := lost_disk(folders[0]):
        raise StateDirectoryError(folders[0], broken, hint=RECONNECT)
    with explain_os_errors(folders[0]):
        make_with_parents(base.parent)
        # Root must not leave folders of its own where somebody else's home is.
        _check_way(base.parent, base)
    parts = [part for folder in folders for part in private_parts(folder) or [folder]]
    for part in dict.fromkeys(parts):
        with explain_os_errors(part):
            with suppress(FileExistsError):
                make_own_folder(part)
            _check_private(part, may_be_link=part == base)
    with explain_os_errors(parts[0]):
        _check_way(parts[0], parts[0])


def _check_way(way: Path, folder: Path) -> None:
    """Refuse a way to a folder on which somebody else could exchange it for theirs."""
    if (exposure := find_exposure(way)) is None:
        return
    hint = WITHOUT_SUDO if is_sudo() else _OWN_DIRECTORY
    if not exposure.is_foreign and exposure.place.stat().st_uid == os.geteuid():
        hint = _closing_hint(exposure.place)
    raise StateDirectoryError(folder, str(exposure), hint=hint)


def _check_private(folder: Path, *, may_be_link: bool) -> None:
    """Refuse what somebody else could put files into, as sshd's StrictModes does."""
    found = folder.lstat()
    detail, hint = None, _OWN_DIRECTORY
    if stat.S_ISLNK(found.st_mode) and may_be_link and found.st_uid in (0, os.geteuid()):
        found = folder.stat()
    is_shared = found.st_mode & _OTHERS_WRITE and not (may_be_link and found.st_mode & stat.S_ISVTX)
    if stat.S_ISLNK(found.st_mode):
        detail = "it is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        detail = os.strerror(errno.ENOTDIR)
    elif found.st_uid != os.geteuid() and not (may_be_link and found.st_uid == 0):
        detail, hint = f"it belongs to {owner_name(found.st_uid)}", _giving_back(folder)
    elif is_shared:
        detail, hint = "others may write to it", _closing_hint(folder)
    if detail is not None:
        raise StateDirectoryError(folder, detail, hint=hint)


def _closing_hint(folder: Path) -> str:
    mount = find_mount(folder)
    if mount is not None and not mount.keeps_permissions:
        return (
            f"its disk ({mount.kind}) does not store permissions: set CAR_HOME to one on another "
            "disk"
        )
    return f"run `chmod go-w {shlex.quote(str(folder))}`"


def server_directory(key: str) -> ServerDirectory:
    """Return the directory of a key; nothing is created."""
    return ServerDirectory(run_root() / key)


def server_directories() -> list[ServerDirectory]:
    """Return the directories of all keys whose state may be read, if only that."""
    return [
        directory
        for directory in _key_directories()
        if _is_readable(directory.path) and os.path.isfile(directory.state)  # noqa: PTH113
    ]


def closed_directories() -> list[ServerDirectory]:
    """Return the directories of keys of which this user can tell nothing, such as of `sudo`'s."""
    return [d for d in _key_directories() if not _is_readable(d.path)]


def _key_directories() -> list[ServerDirectory]:
    root = run_root()
    with explain_os_errors(root):
        if not is_folder(root):
            return []
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    return [ServerDirectory(root / name) for name in names]


def _is_readable(folder: Path) -> bool:
    """Tell whether this user may look into a directory and its state."""
    by_effect = os.access in os.supports_effective_ids
    if not os.access(folder, os.R_OK | os.X_OK, effective_ids=by_effect):
        return False
    state = folder / "state.json"
    exists = os.access(state, os.F_OK, effective_ids=by_effect)
    return not exists or os.access(state, os.R_OK, effective_ids=by_effect)


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into a `StateDirectoryError`."""
    try:
        yield
    except OSError as error:
        raise state_directory_error(error, path) from error


def hint_of(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of the operating system.

    Args:
        error: The error.
        otherwise: The hint for all that is about this very file or program.
    """
    return _HINTS.get(error.errno or 0, otherwise)


def state_directory_error(error: OSError, path: Path) -> StateDirectoryError:
    """Return what an error of the operating system means for the files at `path`."""
    hint = access_hint(path) if error.errno in _FORBIDDEN else hint_of(error, _LOCAL_DIRECTORY)
    return StateDirectoryError(path, error.strerror or str(error), hint=hint)


def run_state_error(error: BaseException) -> StateDirectoryError | None:
    """Return what an error means that names a file of the run state, None for every other."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return None
    path = Path(error.filename)
    with suppress(CarVllmError):
        return state_directory_error(error, path) if private_parts(path) else None
    return None


def access_hint(path: Path) -> str:
    """Return what lets this user read and change a part of `CAR_HOME` that the system closes."""
    hint = _LOCAL_DIRECTORY
    for part in private_parts(path):
        try:
            found = part.stat()
        except OSError:
            break
        if found.st_uid != os.geteuid():
            return f"`{part}` belongs to {owner_name(found.st_uid)}: {_giving_back(part)}"
        if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            return f"run `chmod -R u+rwX {shlex.quote(str(part))}`"
        hint = _OUTSIDE
    return hint


def _giving_back(folder: Path) -> str:
    """Return what to do about a part of `CAR_HOME` that is not this user's."""
    usual = home()
    if is_sudo():
        return WITHOUT_SUDO
    is_in_home = usual is not None and folder.is_relative_to(usual)
    if os.geteuid() != 0 and (is_in_home or folder != car_home()):
        return f"run `{chown_command(folder)}`"
    return _OWN_DIRECTORY
