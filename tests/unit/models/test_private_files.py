"""What a system or a cloud keeps from a program is told with its cure, never taken for missing."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError, UnservableModelError
from langchain_car_vllm.models import find_snapshot, parse_model_id, read_model_facts
from langchain_car_vllm.models.adapter import find_adapter
from langchain_car_vllm.models.identity import identity_of
from langchain_car_vllm.models.model_files import file_error
from langchain_car_vllm.models.servable import find_obstacle
from langchain_car_vllm.models.weights import read_shapes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refuse_to_open(monkeypatch, folder, number):
    """Let no file below a folder be opened."""
    usual = os.open

    def refuse(path, *arguments, **keywords):
        if str(path).startswith(str(folder)):
            raise PermissionError(number, os.strerror(number), str(path))
        return usual(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_forbidden_look_is_told_with_its_cure(whole_model, monkeypatch, number):
    """Privacy settings and another user's files are not a missing model."""
    folder = whole_model()
    refuse_to_open(monkeypatch, folder, number)
    for ask in (read_model_facts, lambda path, _name: parse_model_id(str(path))):
        with pytest.raises(CarVllmError, match=os.strerror(number)) as caught:
            ask(folder, "org/x")
        assert caught.value.hint


@pytest.mark.parametrize(
    ("platform", "number", "cure"),
    [
        ("darwin", errno.EPERM, "Privacy & Security"),
        ("darwin", errno.EPERM, "over SSH"),
        ("darwin", errno.EACCES, "chmod"),
        ("linux", errno.EPERM, "chmod"),
    ],
)
def test_privacy_is_told_from_rights(whole_model, monkeypatch, platform, number, cure):
    """macOS says EPERM where its settings keep a file private, and EACCES where its rights do."""
    monkeypatch.setattr(sys, "platform", platform)
    refused = PermissionError(number, os.strerror(number))
    assert cure in file_error(whole_model() / "config.json", refused).hint


@pytest.mark.parametrize("number", [errno.EDEADLK, errno.ETIMEDOUT])
def test_a_file_that_a_cloud_keeps_is_told(whole_model, monkeypatch, number):
    """iCloud Drive leaves the names of files here, and macOS may not get at what they hold."""
    folder = whole_model()
    opening, reading = os.open, Path.open

    def absent(path, *arguments, **keywords):
        if str(path).startswith(str(folder)):
            raise OSError(number, os.strerror(number), str(path))
        return opening(path, *arguments, **keywords)

    with monkeypatch.context() as settings_kept_away:
        settings_kept_away.setattr(os, "open", absent)
        with pytest.raises(CarVllmError, match=os.strerror(number)) as caught:
            parse_model_id(str(folder))
    assert "iCloud Drive" in caught.value.hint

    def absent_weights(path, *arguments, **keywords):
        if path.suffix == ".safetensors":
            raise OSError(number, os.strerror(number), str(path))
        return reading(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", absent_weights)
    assert "iCloud Drive" in find_obstacle(folder).hint


def test_weights_that_are_not_on_the_disk_are_not_read(whole_model, monkeypatch):
    """iCloud Drive leaves names and sizes; a look at a header would fetch the whole file."""
    folder, stat, reading, read = whole_model(), os.stat, Path.open, []

    def evicted(path, *arguments, **keywords):
        found = stat(path, *arguments, **keywords)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        flags = 0x40000000 if str(path).endswith(".safetensors") else 0
        return SimpleNamespace(**{**fields, "st_flags": flags})

    def noted(path, *arguments, **keywords):
        read.append(Path(path).suffix)
        return reading(path, *arguments, **keywords)

    monkeypatch.setattr(os, "stat", evicted)
    monkeypatch.setattr(Path, "open", noted)
    obstacle = find_obstacle(folder)
    assert "stored in a cloud" in obstacle.reason
    assert "Finder" in obstacle.hint
    assert ".safetensors" not in read
    assert read_shapes(folder / "model.safetensors") == {}


def test_a_cache_that_may_not_be_entered_is_told(home, monkeypatch):
    """After a download with sudo the cache is another user's."""
    folder = home / ".cache/huggingface/hub/models--org--odd"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    usual = os.stat

    def refuse(path, *arguments, **keywords):
        if "snapshots" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *arguments, **keywords)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "getuid", lambda: 501)
    with pytest.raises(UnservableModelError, match="may not be read") as caught:
        find_snapshot("org/odd")
    assert "chown" in caught.value.hint


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_cache_whose_branches_may_not_be_read_is_told(home, monkeypatch, number):
    """macOS tells the size of private files, and opens none: the model was called absent."""
    folder = home / ".cache/huggingface/hub/models--org--odd"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    refuse_to_open(monkeypatch, folder, number)
    for look_for in (find_snapshot, find_adapter):
        with pytest.raises(UnservableModelError, match="may not be read") as caught:
            look_for("org/odd")
        assert caught.value.hint
    assert ChatVllmMlx("org/odd", base_url="http://127.0.0.1:9/v1").model == "org/odd"
    snapshot = str(folder / "snapshots" / COMMIT)
    assert identity_of(snapshot) == (snapshot, None)


def test_a_model_that_may_not_be_looked_at_is_not_said_to_be_missing(tmp_path, monkeypatch):
    """Whoever may not enter a folder does not know what lies in it."""
    usual = os.lstat

    def refuse(path, *arguments, **keywords):
        if str(path) == str(tmp_path / "locked" / "model"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *arguments, **keywords)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "lstat", refuse)
    with pytest.raises(CarVllmError, match="may not be read") as caught:
        parse_model_id(str(tmp_path / "locked" / "model"))
    assert "chmod" in caught.value.hint
