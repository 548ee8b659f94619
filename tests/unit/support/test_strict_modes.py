"""Who else may put something of theirs in a folder's place."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from langchain_car_vllm.support import strict_modes
from langchain_car_vllm.support.strict_modes import Exposure, find_exposure

ME, GROUP = os.getuid(), 54321
OTHER, NOBODY = (pwd.getpwnam(name).pw_uid for name in ("daemon", "nobody"))


@pytest.fixture
def way(reachable: Path) -> Path:
    """Return a folder three folders down."""
    folder = reachable / "a" / "b" / "c"
    folder.mkdir(parents=True)
    return folder


def accounts(monkeypatch: pytest.MonkeyPatch, primary: dict[int, int], named: list[str]) -> None:
    """Have the system know users by their primary groups, and what others are in `GROUP`."""
    entries = [
        SimpleNamespace(pw_name=f"user{uid}", pw_uid=uid, pw_gid=gid)
        for uid, gid in primary.items()
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: entries)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_mem=named))
    strict_modes._is_own_group.cache_clear()


def open_to_group(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `GROUP` write to a folder; only root may give one to a group that it is not in."""
    place.chmod(0o775)
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        found = real(path)
        if path != place:
            return found
        return os.stat_result((*found[:5], GROUP, *found[6:]))

    monkeypatch.setattr(Path, "lstat", lstat)


def test_own_folders_are_nobody_elses(way: Path):
    """What the user makes below their home is theirs."""
    assert find_exposure(way) is None


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(("mode", "is_exposed"), [(0o777, True), (0o703, True), (0o1777, False)])
def test_folders_that_all_may_write_to_are_found(
    way: Path, depth: int, mode: int, is_exposed: bool
):
    """Unless they are sticky, as `/tmp` and `/Users/Shared` are."""
    place = (way, *way.parents)[depth]
    place.chmod(mode)
    assert find_exposure(way) == (Exposure(place, is_foreign=False) if is_exposed else None)


@pytest.mark.parametrize(
    ("primary", "named", "is_exposed"),
    [
        ({0: 0, ME: GROUP}, [], False),  # the group that Linux gives each user
        ({0: 0, ME: GROUP}, ["user0", f"user{ME}"], False),  # `staff` on a Mac of one user
        ({0: 0, ME: GROUP, 502: GROUP}, ["user0"], True),  # `staff` on a Mac of two
        ({0: 0, ME: 0, 502: 502}, ["user502"], True),
        ({0: 0, ME: GROUP}, ["of a directory service"], True),
        ({0: 0, ME: 0}, [], False),  # `staff` on Debian, where nobody is in it
    ],
)
def test_a_group_may_write_that_nobody_else_is_in(
    way: Path,
    monkeypatch: pytest.MonkeyPatch,
    primary: dict[int, int],
    named: list[str],
    is_exposed: bool,
):
    """Homes that the user's own group may write to are usual on Linux."""
    open_to_group(way.parent, monkeypatch)
    accounts(monkeypatch, primary, named)
    assert (find_exposure(way) is not None) is is_exposed


def test_a_group_whose_users_are_not_listed_is_a_shared_one(
    way: Path, monkeypatch: pytest.MonkeyPatch
):
    """A directory service may list none of its users, this one included."""
    open_to_group(way.parent, monkeypatch)
    accounts(monkeypatch, {}, [])
    monkeypatch.setattr(os, "getgid", lambda: GROUP)
    found = find_exposure(way.parent)
    assert found is not None


@pytest.mark.parametrize(
    ("turn", "is_exposed"), [("a/b/in", False), ("a/b/c/..", False), ("a/b/../d", True)]
)
def test_nobody_comes_through_a_folder_of_the_users_alone(
    way: Path, reachable: Path, turn: str, *, is_exposed: bool
):
    """A umask of 002 lets the group write below it, to no effect; but a way may lead out again."""
    (reachable / "a" / "d").mkdir()
    (way / "in").mkdir()
    (way.parent / "in").symlink_to("c/in")
    way.parent.chmod(0o700)
    for folder in (way, way / "in", reachable / "a" / "d"):
        folder.chmod(0o777)
    assert (find_exposure(reachable / turn / ".") is not None) is is_exposed


@pytest.mark.parametrize("target", ["absolute", "relative"])
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_where_a_link_leads_is_looked_at(way: Path, reachable: Path, mode: int, target: str):
    """The link may lie in a home of the user's, and its target's folder be everybody's."""
    way.parent.chmod(mode)
    shared = reachable / "shared"
    (shared / "folder").mkdir(parents=True)
    shared.chmod(0o777)
    (way / "link").symlink_to(
        shared / "folder" if target == "absolute" else "../../../shared/folder"
    )
    found = find_exposure(way / "link" / ".")
    assert found is not None
    assert found.place.samefile(shared)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_belongs_to_another_user_is_found(way: Path, kind: str):
    """Its owner may exchange what lies below, and where a link leads."""
    place = way.parent
    if kind == "link":
        place = way / "link"
        place.symlink_to(way)
    os.chown(place, OTHER, -1, follow_symlinks=False)
    assert find_exposure(way / "link" if kind == "link" else way) == Exposure(
        place, is_foreign=True
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_root_trusts_the_owner_of_its_home(way: Path, monkeypatch: pytest.MonkeyPatch):
    """A job of CI is root in a container, with a home of the host's; others are others."""
    monkeypatch.setenv("HOME", str(way.parent))
    os.chown(way.parent, NOBODY, -1)
    assert find_exposure(way) is None
    os.chown(way, OTHER, -1)
    assert find_exposure(way) == Exposure(way, is_foreign=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_users_whom_the_system_does_not_know_are_nobody_else(way: Path):
    """A folder of the machine's belongs to its user in a container too, where root works in it."""
    os.chown(way.parent, 12345, 12345)
    way.parent.chmod(0o775)
    assert find_exposure(way) is None
