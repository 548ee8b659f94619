"""Who else may put something of theirs in a folder's place, as sshd's StrictModes asks it.

Whoever may write to a folder above it can move it away and make another, whatever its own rights.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Exposure(NamedTuple):
    """A part of a way that is not in the hands of this user and root alone.

    Attributes:
        place: The part.
        is_foreign: Whether it belongs to another user; otherwise others may write to it.
    """

    place: Path
    is_foreign: bool

    def __str__(self) -> str:
        if self.is_foreign:
            return f"`{self.place}` belongs to another user"
        return f"others may write to `{self.place}`"


def find_exposure(path: Path) -> Exposure | None:
    """Return the first part of the way to a file or folder where others may exchange what follows.

    In a sticky folder, such as `/tmp`, everybody may do so with their own entries only, and below
    one that lets nobody else through, such as a home, nobody else may at all.

    Raises:
        OSError: The way cannot be looked at.
    """
    trusted, is_closed = _trusted_users(), False
    for place, found in _way_to(path):
        is_closed = is_closed and place != place.parent
        if found.st_uid not in trusted and _has_account(found.st_uid):
            return Exposure(place, is_foreign=True)
        if stat.S_ISLNK(found.st_mode):
            continue
        if not is_closed and _is_open(found):
            return Exposure(place, is_foreign=False)
        is_closed = is_closed or not found.st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    return None


def _trusted_users() -> set[int]:
    """Return root, this user, and who they have to be where users are not those of the machine.

    In a container root's folders may belong to whoever owns the root folder, and root may be given
    the home of another user, as in jobs of CI.
    """
    users = {0, os.geteuid(), Path("/").stat().st_uid}
    if os.geteuid() == 0:
        with suppress(OSError, RuntimeError):  # there is no home
            users.add(Path.home().stat().st_uid)
    return users


def _has_account(user: int) -> bool:
    """Tell whether this system knows a user; in a container those of the machine are nobody."""
    import pwd  # noqa: PLC0415 - folders of others are rare, and Windows has none

    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the parts of a way from the root on, and from there again those of where it turns."""
    for place in (*reversed(path.parents), path):
        found = place.lstat()
        yield place, found
        if stat.S_ISLNK(found.st_mode):
            yield from _way_to(place.parent / place.readlink())
        elif place.name == "..":
            yield from _way_to(place.resolve())


def _is_open(found: os.stat_result) -> bool:
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return False
    by_group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid, os.geteuid())
    return bool(found.st_mode & stat.S_IWOTH or by_group)


@lru_cache(maxsize=64)
def _is_own_group(group: int, user: int) -> bool:
    """Tell whether nobody but a user and root is in a group; a directory service may take long.

    Linux gives each user such a group and lets it write; on a Mac all are in `staff`. Where the
    system does not list its users, as with some directory services, it is taken for a shared one.
    """
    import grp  # noqa: PLC0415 - folders that a group may write to are rare, and Windows has none
    import pwd  # noqa: PLC0415

    if group == 0:
        return True
    accounts = pwd.getpwall()
    ids = {account.pw_name: account.pw_uid for account in accounts}
    try:
        named = grp.getgrgid(group).gr_mem
    except KeyError:  # nor are its users known, as above
        named = []
    members = {account.pw_uid for account in accounts if account.pw_gid == group}
    members |= {ids.get(name, -1) for name in named}
    return members <= {0, user} and (group != os.getgid() or user in members)
