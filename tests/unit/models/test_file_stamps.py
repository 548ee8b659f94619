"""What counts as another set of files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from langchain_car_vllm.models.file_stamps import recent_stamp, stamp_files

Change = Callable[[Path, Path], object]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model and an adapter."""
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for folder, names in (
        (model, ("config.json", "model.safetensors", "chat_template.jinja", "README.md")),
        (adapter, ("adapter_config.json", "adapters.safetensors")),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("1")
            os.utime(folder / name, (1e9, 1e9))
    return model, adapter


CHANGES: dict[str, tuple[bool, Change]] = {
    "weights": (True, lambda model, _: (model / "model.safetensors").write_text("2")),
    "a shard more": (True, lambda model, _: (model / "model-2.safetensors").write_text("2")),
    "template": (True, lambda model, _: (model / "chat_template.jinja").write_text("2")),
    "a file less": (True, lambda model, _: (model / "config.json").unlink()),
    "adapter": (True, lambda _, adapter: (adapter / "adapters.safetensors").write_text("2")),
    "checkpoint": (False, lambda _, adapter: (adapter / "0100_adapters.safetensors").touch()),
    "tokenizer": (True, lambda model, _: (model / "tokenizer_config.json").write_text("2")),
    "results": (False, lambda model, _: (model / "history.json").write_text("2")),
    "notes": (False, lambda model, _: (model / "README.md").write_text("2")),
    "the Finder's": (False, lambda model, _: (model / "._model.safetensors").write_text("2")),
    "a dangling link": (False, lambda model, _: (model / "x.json").symlink_to(model / "none")),
}


@pytest.mark.parametrize(("counts", "change"), CHANGES.values(), ids=CHANGES)
def test_what_the_server_reads_counts(folders: tuple[Path, Path], counts: bool, change: Change):
    """Files that are written, come or go; no others, and none that cannot be looked at."""
    model, adapter = folders
    before = stamp_files(str(model), str(adapter))
    assert before is not None
    assert not before.is_being_written()
    change(model, adapter)
    after = stamp_files(str(model), str(adapter))
    assert after is not None
    assert (after.digest != before.digest) is counts


def test_repositories_have_none(tmp_path: Path):
    """Nor do folders that are not there."""
    assert stamp_files("org/model", "org/adapter") is None
    assert stamp_files(str(tmp_path / "none")) is None
    assert recent_stamp(str(tmp_path)) is None
