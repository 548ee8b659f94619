"""Which disks another machine can use, too."""

from pathlib import Path

import psutil
import pytest

from langchain_car_vllm.runtime.mounts import Mount, is_local, is_on_local_disk, mount_of

MAC = [
    Mount("/", "apfs", "ro,local,rootfs,dovolfs,journaled,multilabel"),
    Mount("/System/Volumes/Data", "apfs", "rw,local,dovolfs,dontbrowse,journaled,multilabel"),
    Mount("/Network/Users", "nfs", "rw,nosuid,automounted"),
    Mount("/Volumes/share", "smbfs", "rw,nodev,nosuid"),
    Mount("/Volumes/usb", "exfat", "rw,local,noowners"),
]


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("/Users/a/.car", True),
        ("/Network/Users/a/.car", False),
        ("/Volumes/share/.car", False),
        ("/Volumes/share2/.car", True),
        ("/Volumes/usb/.car", True),
    ],
)
def test_disks_of_a_mac(path, local):
    """The mount says whether it is local; a folder of a similar name is another one."""
    mount = mount_of(path, MAC)
    assert mount is not None
    assert is_local(mount, "darwin") is local


@pytest.mark.parametrize(
    ("kind", "local"),
    [
        *(("ext4", True), ("overlay", True), ("tmpfs", True), ("nfs4", False), ("cifs", False)),
        *(("fuse.sshfs", False), ("virtiofs", False), ("9p", False)),
    ],
)
def test_disks_of_linux(kind, local):
    """What lies on another machine, or may, is not this machine's alone."""
    assert is_local(Mount("/", kind, "rw"), "linux") is local


def test_the_last_of_several_mounts_counts():
    """What was mounted over another one hides it."""
    over = [Mount("/home", "ext4", ""), Mount("/home", "nfs", "")]
    found = mount_of("/home/a", over)
    assert found is not None
    assert found.kind == "nfs"


def test_this_disk_is_local(tmp_path: Path):
    """The tests run on a disk of this machine, and a path that is not there yet is on one, too."""
    assert is_on_local_disk(tmp_path / "not" / "yet")


def test_a_disk_that_nobody_tells_of_is_not_this_machines_alone(tmp_path: Path, monkeypatch):
    """A sandbox may keep a program from the list of mounts."""

    def deny(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(psutil, "disk_partitions", deny)
    assert not is_on_local_disk(tmp_path)
