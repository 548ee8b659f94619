"""The folders of the home, the run state and the managed runtime.

`CAR_HOME` moves the run state; the managed runtime stays in `~/.car/visual-runtime`, which CAR
shares, as long as it can be there.
"""

import os
import shlex
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from langchain_car_vllm import environment
from langchain_car_vllm.errors import StateDirectoryError

RECONNECT = "connect the disk, or remove the link to it"
"""What to do about a disk that is not connected."""
WITHOUT_SUDO = "run it without `sudo`, or with `sudo -H` for a home and servers of root's own"
_DISKS = Path("/Volumes")
"""Where macOS connects them; nobody but the system makes folders there."""
_RUNTIME = "visual-runtime"
# The kernel tells it without a look at the disk, so an event loop may ask; guards of event loops,
# which put themselves in the place of `os.getcwd`, refuse that.
_working_directory: Callable[[], str] = import_module(os.name).getcwd


def home() -> Path | None:
    """Return `$HOME`, or None where it is unset, empty or not absolute.

    The password database is not asked: a process that hides HOME wants its home left alone.
    """
    value = environment.HOME.read()
    return Path(value) if value and Path(value).is_absolute() else None


def absolute_path(text: str) -> str:
    """Return a path as one from the root; only a relative one needs the working directory.

    Raises:
        ValueError: It cannot be a path, or is relative to a directory that is gone.
    """
    expanded = os.path.expanduser(text)  # noqa: PTH111
    if not os.path.isabs(expanded):  # noqa: PTH117
        try:
            expanded = os.path.join(_working_directory(), expanded)  # noqa: PTH118
        except OSError as error:
            raise ValueError("it is relative, and the working directory is gone") from error
    return os.path.normpath(expanded)


def car_home() -> Path:
    """Return the folder of the run state: `CAR_HOME`, else `~/.car`, else a private temporary one.

    Raises:
        ConfigurationError: `CAR_HOME` is not an absolute path.
        StateDirectoryError: There is no home, and the temporary folder is not safely ours.
    """
    if path := environment.CAR_HOME.read():
        return path
    if base := home():
        return base / ".car"
    return _private_temporary_home()


def _private_temporary_home() -> Path:
    path = Path(f"car-vllm-{os.getuid()}")
    detail = "it is not a directory that belongs to you alone"
    try:
        path = tempfile.gettempdir() / path
        with suppress(FileExistsError):
            make_own_folder(path)
        found = path.lstat()
    except OSError as error:
        detail = error.strerror or str(error)
    else:
        is_private = found.st_uid == os.getuid() and not found.st_mode & 0o077
        if stat.S_ISDIR(found.st_mode) and is_private:
            return path
    raise StateDirectoryError(path, detail, hint="set HOME, or CAR_HOME to a directory of your own")


def make_own_folder(path: Path) -> None:
    """Make a folder that is the user's alone, whatever the umask; one that is there stays as it is.

    Raises:
        FileExistsError: Something else is there.
        OSError: It cannot be made.
        StateDirectoryError: It would be root's in a folder of the user who called `sudo`, who could
            not use it any more.
    """
    if is_sudo() and str(existing_part(path).stat().st_uid) == environment.SUDO_UID.text():
        raise StateDirectoryError(path, "with `sudo` it would belong to root", hint=WITHOUT_SUDO)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises
            raise
    else:
        # A umask may have taken rights from the user, too.
        path.chmod(0o700)


def make_with_parents(folder: Path) -> None:
    """Make a folder that others may look into; whatever the umask, they may not write to it.

    Raises:
        OSError: It cannot be made.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - `Path.is_dir` raises
        make_with_parents(folder.parent)
        folder.mkdir(mode=0o755, exist_ok=True)


def is_sudo() -> bool:
    """Tell whether this is root by the word of another user, whose HOME `sudo` may have kept."""
    return os.geteuid() == 0 and environment.SUDO_UID.text() not in (None, "0")


def owner_name(uid: int) -> str:
    """Return how a message calls an owner who is not this user."""
    return "root" if uid == 0 else "another user"


def chown_command(path: Path | str) -> str:
    """Return the command that gives a file, or a folder with all in it, to the user."""
    return f'sudo chown -R "$USER" {shlex.quote(str(path))}'


def private_parts(folder: Path) -> list[Path]:
    """Return what of the way to a folder is the user's alone: from `CAR_HOME` or `~/.car` on."""
    usual = home()
    for base in (car_home(), *([usual / ".car"] if usual else [])):
        if folder.is_relative_to(base):
            return [*reversed([p for p in folder.parents if p.is_relative_to(base)]), folder]
    return []


def make_private(folder: Path) -> None:
    """Make a folder, whatever the umask: what is missing of its private parts is the user's alone.

    Raises:
        OSError: It cannot be made.
        StateDirectoryError: It would be root's, see `make_own_folder`.
    """
    parts = private_parts(folder)
    make_with_parents(parts[0].parent if parts else folder)
    for part in parts:
        make_own_folder(part)


def run_root() -> Path:
    """Return the folder that holds one directory per server key."""
    return car_home() / "run" / "vllm-py"


def kernels_folder() -> Path:
    """Return the folder of what MLX compiles for the CPU, for this user's servers alone."""
    return run_root().with_name("kernels")


def managed_root() -> Path | None:
    """Return the managed runtime's virtual environment, or None without any folder for it.

    `CAR_VLLM_MLX_RUNTIME`, else `~/.car/visual-runtime`; where that can neither be found nor made,
    it lies in `CAR_HOME`, so that one variable is enough for a home that cannot be written.
    """
    if path := environment.CAR_VLLM_MLX_RUNTIME.read():
        return path
    base = home()
    usual = base / ".car" / _RUNTIME if base else None
    if usual is not None and can_be_made(usual):
        return usual
    moved = environment.CAR_HOME.read()
    return moved / _RUNTIME if moved else usual


def can_be_made(folder: Path) -> bool:
    """Tell whether a folder is there or could be."""
    place = existing_part(folder)
    is_folder = os.path.isdir(place)  # noqa: PTH112 - `Path.is_dir` raises
    return place == folder or (is_folder and os.access(place, os.W_OK | os.X_OK))


def lost_disk(folder: Path) -> str | None:
    """Return what to say where the disk of a folder is not connected, None where all is there.

    A link on the way leads nowhere then. Nothing can be made there, nor in its place.
    """
    for place in (folder, *folder.parents):
        if os.path.islink(place) and not os.path.exists(place):  # noqa: PTH110, PTH114
            return f"`{place}` is a link to `{os.path.realpath(place)}`, which is not there"
        if place.parent == _DISKS and not os.path.exists(place):  # noqa: PTH110
            return f"the disk `{place.name}` is not connected"
    return None


def existing_part(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    places = (folder, *folder.parents)
    found = (place for place in places if os.path.exists(place))  # noqa: PTH110 - `Path` raises
    return next(found, places[-1])


def folder_size(folder: Path) -> int:
    """Return the bytes of a folder's files; somebody else may be changing it."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(path, name).lstat().st_size
    return size
