"""Whether another machine can use a folder, too."""

import sys
from pathlib import Path

from langchain_car_vllm.runtime.mounts import Mount, find_mount

# Of what Linux calls filesystems, those that lie on another machine, or may.
_REMOTE = (
    *("nfs", "cifs", "smb", "afs", "ceph", "gfs", "glusterfs", "lustre", "gpfs", "beegfs", "9p"),
    *("virtiofs", "vboxsf", "vmhgfs", "prl_fs", "ocfs", "orangefs", "pvfs", "davfs", "ncpfs"),
    "fuse",
)


def is_on_local_disk(path: Path) -> bool:
    """Tell whether a folder is this machine's alone; where nobody says so, it is not."""
    mount = find_mount(path)
    return mount is not None and is_local(mount)


def is_local(mount: Mount, platform: str = sys.platform) -> bool:
    """Tell whether a mount is of this machine's own disk."""
    if platform == "darwin":
        return mount.has_option("local")
    return not mount.kind.startswith(_REMOTE)
