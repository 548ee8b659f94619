"""Whether the disk of a folder lets programs run."""

import os
from pathlib import Path

from langchain_car_vllm.runtime.mounts import find_mount

ELSEWHERE = "set CAR_VLLM_MLX_RUNTIME to a folder on another disk"
_FLAG = getattr(os, "ST_NOEXEC", 0)


def is_noexec(path: Path) -> bool:
    """Tell whether a file or folder, there already or not, lies on a disk mounted `noexec`."""
    place = Path(os.path.realpath(path))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        if _FLAG:
            return bool(os.statvfs(place).f_flag & _FLAG)
        # macOS tells it among the options of the mount alone.
        mount = find_mount(place)
        return mount is not None and mount.has_option("noexec")
    except OSError:
        return False
