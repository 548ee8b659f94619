"""What is there, what is not, and what nobody can tell."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from langchain_car_vllm.support import file_presence
from langchain_car_vllm.support.file_presence import (
    entries_of,
    is_file,
    is_folder,
    is_link,
    is_present,
)

LOOKS = (is_present, is_file, is_folder, is_link)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a file, a folder and links to each, to nothing and to itself."""
    made = tmp_path / "place"
    (made / "folder").mkdir(parents=True)
    (made / "file").touch()
    for name, target in {"f": "file", "d": "folder", "none": "gone", "loop": "loop"}.items():
        (made / f"to_{name}").symlink_to(target)
    return made


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file", (True, True, False, False)),
        ("folder", (True, False, True, False)),
        ("to_f", (True, True, False, True)),
        ("to_d", (True, False, True, True)),
        ("to_none", (False, False, False, True)),
        ("to_loop", (False, False, False, True)),
        ("gone", (False, False, False, False)),
        ("gone/further", (False, False, False, False)),
        ("file/further", (False, False, False, False)),
        ("a\0b", (False, False, False, False)),
    ],
)
def test_what_is_there(place: Path, name: str, told: tuple[bool, ...]):
    assert tuple(look(place / name) for look in LOOKS) == told


def test_entries(place: Path):
    (place / ".hidden").touch()
    every = [".hidden", "file", "folder", "to_d", "to_f", "to_loop", "to_none"]
    assert [path.name for path in entries_of(place)] == every
    assert entries_of(place, "to_?") == [place / "to_d", place / "to_f"]
    assert entries_of(place, "[!.]*") == [place / name for name in every[1:]]
    assert entries_of(place / "gone") == entries_of(place / "file") == []


@pytest.mark.parametrize("look", [*LOOKS, entries_of])
@pytest.mark.parametrize(
    "error", [errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENAMETOOLONG, errno.ESTALE]
)
def test_what_nobody_can_tell_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object], error: int
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    for call in ("stat", "lstat", "listdir", "scandir"):
        monkeypatch.setattr(file_presence.os, call, refuse)
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        look(place / "file")
    assert caught.value.errno == error


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_what_is_closed_to_this_user_is_an_error(place: Path):
    place.chmod(0o700)
    os.seteuid(12345)
    try:
        for look in (*LOOKS, entries_of):
            with pytest.raises(PermissionError):
                look(place / "folder")
    finally:
        os.seteuid(0)
