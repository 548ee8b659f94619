"""Where a server keeps its saved prefix cache, and how it is saved."""

import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.mends import prefix_cache_folder
from langchain_car_vllm.server.supervisor.mends.prefix_cache_folder import CacheFolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a server key."""
    folder = tmp_path / "key"
    folder.mkdir()
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"):
        (folder / name).write_text("1")
    return folder


def folder_of(root: Path, model: object, *arguments: str) -> str:
    """Return the folder that a server started now takes."""
    return CacheFolder(str(root), ["serve", str(model), *arguments]).path()


def rewrite(path: Path) -> None:
    """Write other bytes of the same size, and hide it from size and time."""
    before = path.stat()
    path.write_text("2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Move another file of the same size and time there."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": lambda model: rewrite(model / "model.safetensors"),
    "moved weights": lambda model: replace(model / "model.safetensors"),
    "tokenizer": lambda model: rewrite(model / "tokenizer.json"),
    "template": lambda model: rewrite(model / "chat_template.jinja"),
    "config": lambda model: rewrite(model / "config.json"),
    "a shard": lambda model: (model / "model-2.safetensors").write_text("1") and None,
    "one less": lambda model: (model / "chat_template.jinja").unlink(),
    "code": lambda model: (model / "modeling.py").write_text("1") and None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_at_the_same_path_has_another_folder(root: Path, model: Path, change: str):
    """Whatever of a model is changed; the same model keeps its folder."""
    before = folder_of(root, model)
    assert folder_of(root, model) == before
    CHANGES[change](model)
    assert folder_of(root, model) != before


def test_what_cannot_change_an_answer_keeps_the_folder(root: Path, model: Path):
    """A desktop's files and a read-me are not the model."""
    before = folder_of(root, model)
    for name in (".DS_Store", "README.md", "preview.png"):
        (model / name).write_text("x")
    assert folder_of(root, model) == before


def test_a_file_that_an_argument_names_counts(root: Path, model: Path, tmp_path: Path):
    """An adapter or a template beside the model belongs to what the cache was computed from."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_text("1")
    before = folder_of(root, model, "--adapter-path", str(adapter))
    rewrite(adapter / "adapters.safetensors")
    assert folder_of(root, model, "--adapter-path", str(adapter)) != before


def test_versions_share_no_folder(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    """Two versions of the software never meet."""
    first = folder_of(root, model)
    monkeypatch.setattr(prefix_cache_folder, "_versions", lambda: ["mlx 99"])
    assert folder_of(root, model) != first


def test_a_hub_model_is_its_commit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
):
    """A new commit of a model on the Hub has another folder."""
    cache = tmp_path / "hub"
    constants = types.ModuleType("huggingface_hub.constants")
    constants.HF_HUB_CACHE = str(cache)
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.ModuleType("huggingface_hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    refs = cache / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        (refs / "main").write_text(commit)
        snapshot = cache / "models--org--name" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("1")
        found.append(folder_of(root, "org/name"))
    assert found[0] != found[1]


def test_weights_swapped_while_they_load_leave_nothing_behind(root: Path, model: Path):
    """Nobody can tell which of the two was read, so the folder is nobody's afterwards."""
    begun = CacheFolder(str(root), ["serve", str(model)])
    rewrite(model / "model.safetensors")
    mine = begun.path()
    assert folder_of(root, model) != mine


def test_the_folder_stays_that_of_the_weights_that_were_read(root: Path, model: Path):
    """Weights that are replaced while the server runs change nothing when it saves."""
    running = CacheFolder(str(root), ["serve", str(model)])
    loaded = running.path()
    rewrite(model / "model.safetensors")
    assert running.path() == loaded


def test_a_key_keeps_one_folder(root: Path, model: Path):
    """It lies where all others look for it; what other weights left goes at the next start."""
    old = Path(folder_of(root, model))
    old.mkdir(parents=True)
    (old / "entry_0.safetensors").touch()
    assert old.parent == ServerDirectory(root).prefix_caches
    assert folder_of(root, model) == str(old)
    assert old.exists()
    rewrite(model / "model.safetensors")
    assert folder_of(root, model) != str(old)
    assert not old.exists()


class SavedCache:
    """Saves as vllm-mlx 0.6.0 does: over what is there, the index at the end."""

    def __init__(self, texts: list[str], ends_at: int = -1) -> None:
        self.texts, self.ends_at = texts, ends_at

    def __len__(self) -> int:
        return len(self.texts)

    def save_to_disk(self, cache_dir: str) -> bool:
        if not self.texts:
            return False
        folder = Path(cache_dir, "of-these-versions")
        folder.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(self.texts):
            if number == self.ends_at:
                raise KeyboardInterrupt
            (folder / f"entry_{number}.safetensors").write_text(text)
        (folder / "index.json").write_text(str(len(self.texts)))
        return True


def test_what_was_half_saved_is_never_read(tmp_path: Path):
    """A save that is cut short leaves no index, a whole one nothing old, and nothing is no save."""
    module = types.SimpleNamespace(MemoryAwarePrefixCache=type("Cache", (SavedCache,), {}))
    prefix_cache_folder._save_whole.apply(module)
    cache = module.MemoryAwarePrefixCache
    folder = tmp_path / "of-these-versions"
    assert cache(["one", "two", "three"]).save_to_disk(str(tmp_path))
    assert not cache([]).save_to_disk(str(tmp_path))
    assert (folder / "index.json").read_text() == "3"
    assert cache(["four", "five"]).save_to_disk(str(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == [
        "entry_0.safetensors",
        "entry_1.safetensors",
        "index.json",
    ]
    with pytest.raises(KeyboardInterrupt):
        cache(["six", "seven"], ends_at=1).save_to_disk(str(tmp_path))
    assert (folder / "entry_0.safetensors").read_text() == "six"
    assert not (folder / "index.json").exists()
