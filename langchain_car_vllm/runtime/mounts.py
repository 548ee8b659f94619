"""The mounted filesystem that a file or folder lies on."""

import os
from pathlib import Path
from typing import NamedTuple

import psutil


class Mount(NamedTuple):
    """A mounted filesystem.

    Attributes:
        point: Where.
        kind: Of which type, such as `apfs`.
        options: Such as `noexec`, and on macOS `local` where the disk is this machine's own.
    """

    point: str
    kind: str
    options: str

    def has_option(self, name: str) -> bool:
        """Tell whether it is mounted with an option."""
        return name in self.options.split(",")


def find_mount(path: Path) -> Mount | None:
    """Return the mount that a path of this machine is on, None where nobody says."""
    try:
        partitions = psutil.disk_partitions(all=True)
    except OSError:  # in a sandbox
        return None
    found = [Mount(p.mountpoint, p.fstype, p.opts) for p in partitions]
    return mount_of(os.path.realpath(path), found)


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """Return the mount that a path is on: the longest that fits, the last of several there."""
    fitting = [m for m in mounts if os.path.commonpath([path, m.point]) == m.point]
    longest = max((len(m.point) for m in fitting), default=0)
    return next((m for m in reversed(fitting) if len(m.point) == longest), None)
