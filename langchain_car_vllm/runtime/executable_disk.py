"""Whether the disk of a folder lets programs run."""

import os
from pathlib import Path

import psutil

ELSEWHERE = "set CAR_VLLM_MLX_RUNTIME to a folder on another disk"
_FLAG = getattr(os, "ST_NOEXEC", 0)


def is_noexec(path: Path) -> bool:
    """Tell whether a file or folder, there already or not, lies on a disk mounted `noexec`."""
    place = Path(os.path.realpath(path))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        # macOS tells this among the options of the mount alone.
        return bool(os.statvfs(place).f_flag & _FLAG) if _FLAG else _has_option(str(place))
    except OSError:
        return False


def _has_option(place: str) -> bool:
    mounts = [
        (len(mount.mountpoint), mount.opts)
        for mount in psutil.disk_partitions(all=True)
        if os.path.commonpath([place, mount.mountpoint]) == mount.mountpoint
    ]
    longest = max((length for length, _ in mounts), default=0)
    options = [options for length, options in mounts if length == longest]
    return bool(options) and "noexec" in options[-1].split(",")
