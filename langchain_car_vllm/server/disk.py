"""Whether another machine can use a folder, too."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

# Of what Linux calls filesystems, those that lie on another machine, or may.
_REMOTE = (
    "nfs",
    "cifs",
    "smb",
    "afs",
    "ceph",
    "gfs",
    "glusterfs",
    "lustre",
    "gpfs",
    "beegfs",
    "9p",
)
_SHARED = ("virtiofs", "vboxsf", "vmhgfs", "prl_fs", "ocfs", "orangefs", "pvfs", "davfs", "ncpfs")


class Mount(NamedTuple):
    """A mounted filesystem.

    Attributes:
        point: Where.
        kind: Of which type, such as `apfs`.
        options: Among them `local`, on macOS, where the disk is this machine's own.
    """

    point: str
    kind: str
    options: str


def is_on_local_disk(path: Path) -> bool:
    """Tell whether a folder is this machine's alone; where nobody says so, it is not."""
    found = [Mount(p.mountpoint, p.fstype, p.opts) for p in psutil.disk_partitions(all=True)]
    mount = mount_of(os.path.realpath(path), found)
    return mount is not None and is_local(mount)


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """Return the mount that a path is on: the longest that fits, the last of several there."""
    fitting = [m for m in mounts if os.path.commonpath([path, m.point]) == m.point]
    longest = max((len(m.point) for m in fitting), default=0)
    return next((m for m in reversed(fitting) if len(m.point) == longest), None)


def is_local(mount: Mount, platform: str = sys.platform) -> bool:
    """Tell whether a mount is of this machine's own disk."""
    if platform == "darwin":
        return "local" in mount.options.split(",")
    return not mount.kind.startswith((*_REMOTE, *_SHARED, "fuse"))
