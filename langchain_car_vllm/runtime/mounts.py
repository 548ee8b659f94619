"""The mounted filesystem that a file or folder lies on, and what it is good for."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

ELSEWHERE = "set CAR_VLLM_MLX_RUNTIME to a folder on another disk"
_NOEXEC = getattr(os, "ST_NOEXEC", 0)
# Of what Linux calls filesystems, those that lie on another machine, or may.
_REMOTE = (
    *("nfs", "cifs", "smb", "afs", "ceph", "gfs", "glusterfs", "lustre", "gpfs", "beegfs", "9p"),
    *("virtiofs", "vboxsf", "vmhgfs", "prl_fs", "ocfs", "orangefs", "pvfs", "davfs", "ncpfs"),
    "fuse",
)


# macOS calls FAT `msdos`.
_WITHOUT_PERMISSIONS = ("exfat", "msdos", "vfat", "ntfs", "fuseblk")


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

    @property
    def keeps_permissions(self) -> bool:
        """Whether files there belong to somebody; on disks made for Windows all are everybody's."""
        return not self.kind.lower().startswith(_WITHOUT_PERMISSIONS)

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


def is_on_local_disk(path: Path) -> bool:
    """Tell whether a folder is this machine's alone; where nobody says so, it is not."""
    mount = find_mount(path)
    return mount is not None and is_local(mount)


def is_local(mount: Mount, platform: str = sys.platform) -> bool:
    """Tell whether a mount is of this machine's own disk."""
    if platform == "darwin":
        return mount.has_option("local")
    return not mount.kind.startswith(_REMOTE)


def is_noexec(path: Path) -> bool:
    """Tell whether a file or folder, there already or not, lies on a disk mounted `noexec`."""
    place = Path(os.path.realpath(path))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        if _NOEXEC:
            return bool(os.statvfs(place).f_flag & _NOEXEC)
        # macOS tells it among the options of the mount alone.
        mount = find_mount(place)
        return mount is not None and mount.has_option("noexec")
    except OSError:
        return False
