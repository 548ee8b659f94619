"""What stays out of backups; Time Machine's tool is imitated."""

from pathlib import Path

import pytest

from langchain_car_vllm.support import backups
from langchain_car_vllm.support.backups import TAG, exclude_from_backups

SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"


@pytest.fixture
def tmutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac's `tmutil`, and the file that it notes its arguments in."""
    program, notes = tmp_path / "tmutil", tmp_path / "tmutil.log"
    program.write_text(f'#!/bin/sh\necho "$*" >> {notes}\n')
    program.chmod(0o755)
    monkeypatch.setattr(backups, "PLATFORM", "darwin")
    monkeypatch.setattr(backups, "_TMUTIL", str(program))
    return notes


def test_a_mac_excludes_a_folder_and_tags_it(tmutil: Path, tmp_path: Path):
    """Time Machine's own tool is asked, and others find the tag."""
    folder = tmp_path / "new folder"
    folder.mkdir()
    exclude_from_backups(folder)
    assert tmutil.read_text() == f"addexclusion {folder}\n"
    assert (folder / TAG).read_text().startswith(SIGNATURE)


def test_a_mac_excludes_what_another_program_has_tagged(tmutil: Path, tmp_path: Path):
    """uv tags the environments that it makes, and tells Time Machine nothing."""
    (tmp_path / TAG).write_text(SIGNATURE)
    exclude_from_backups(tmp_path)
    assert tmutil.read_text() == f"addexclusion {tmp_path}\n"
    assert (tmp_path / TAG).read_text() == SIGNATURE


def test_elsewhere_the_tag_is_all(tmutil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There is no Time Machine on Linux."""
    monkeypatch.setattr(backups, "PLATFORM", "linux")
    (tmp_path / "folder").mkdir()
    exclude_from_backups(tmp_path / "folder")
    assert not tmutil.exists()
    assert (tmp_path / "folder" / TAG).exists()


@pytest.mark.parametrize("obstacle", ["no tool", "fails", "no tag"])
def test_what_cannot_be_excluded_stays_in(
    tmutil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
):
    """Nothing fails for it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    if obstacle == "no tool":
        monkeypatch.setattr(backups, "_TMUTIL", "/nonexistent/tmutil")
    elif obstacle == "fails":
        tmutil.with_name("tmutil").write_text("#!/bin/sh\nexit 80\n")
    else:
        (folder / TAG).mkdir()
    exclude_from_backups(folder)
