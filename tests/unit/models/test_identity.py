"""One server for one set of weights, however they are named."""

import dataclasses
import fcntl
import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from fakes.hub import write_model

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.models.identity import identity_of, real_path
from langchain_car_vllm.server.client.lease import directory_of
from langchain_car_vllm.server.spec import ServerSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "mlx-community/Qwen3.6-35B-A3B-4bit"
CATALOG = "vllm-mlx/qwen3.6-35b-a3b:4bit"


def key(model):
    return ChatVllmMlx(model=str(model))._spec().key()


@pytest.fixture
def cached(home):
    """A complete copy of a repository in the Hub cache."""
    folder = home / ".cache/huggingface/hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = write_model(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize(
    "name",
    [
        *("vllm-mlx/Qwen3.6-35B-A3B-4BIT", REPOSITORY, REPOSITORY.lower(), REPOSITORY.upper()),
        f"vllm-mlx/{REPOSITORY}",
    ],
)
def test_a_catalog_id_is_its_repository(name):
    """The Hub does not tell letter case apart, and the catalog names repositories."""
    assert key(name) == key(CATALOG)


def test_a_copy_in_the_cache_is_its_repository(cached, tmp_path):
    """The directory of the default commit, and a link to it, are what the id is served from."""
    (tmp_path / "link").symlink_to(cached)
    assert key(cached) == key(tmp_path / "link") == key(REPOSITORY)


def test_another_commit_is_another_model(cached):
    """A directory of the cache that the default branch does not name keeps its own identity."""
    other = write_model(cached.with_name("f" * 40))
    assert key(other) != key(REPOSITORY)
    (cached.parents[1] / "refs" / "main").write_text("f" * 40)
    assert identity_of(str(other)) == identity_of(REPOSITORY)
    assert identity_of(str(cached)) != identity_of(REPOSITORY)


def same_server(path: Path, repository: str) -> bool:
    return directory_of(ServerSpec(str(path), "x")) == directory_of(ServerSpec(repository, "x"))


def test_a_copy_is_its_repository_once_it_is_complete(cached):
    """Also for a program that has named it by its path while it was being downloaded."""
    weights = cached / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    assert not same_server(cached, REPOSITORY)
    weights.write_bytes(kept)
    assert same_server(cached, REPOSITORY)
    (cached.parents[1] / "refs" / "main").write_text("f" * 40)
    assert not same_server(cached, REPOSITORY)


def test_a_newer_copy_in_the_cache_takes_the_repository_over(home):
    """LM Studio's copy was the repository until another one was pulled."""
    mine = write_model(home / ".lmstudio" / "models" / "org" / "model")
    assert same_server(mine, "org/model")
    folder = home / ".cache/huggingface/hub/models--org--model"
    write_model(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    assert not same_server(mine, "org/model")


@pytest.mark.parametrize("named", ["source", "adapter", "draft"])
def test_a_link_that_leads_elsewhere_names_another_model(home, tmp_path, named):
    """A program that has used one for long does not share a server of what it led to before."""
    former, latter = (write_model(tmp_path / name) for name in ("v1", "v2"))
    link = tmp_path / "current"
    link.symlink_to(former)

    def folder(path: Path) -> Path:
        names = {"source": "org/name", "served_name": "x", named: str(path)}
        return directory_of(ServerSpec(**names)).path

    assert folder(link) == folder(former)
    link.unlink()
    link.symlink_to(latter)
    assert folder(link) == folder(latter) != folder(former)


def test_a_copy_that_its_branch_has_left_is_another_model(cached):
    """The server of the repository serves the new commit; whoever named the old one has his own."""
    by_path = ServerSpec(str(cached), "x")
    by_name = ServerSpec(REPOSITORY, "x")
    assert directory_of(by_path).path == directory_of(by_name).path
    write_model(cached.with_name("f" * 40))
    (cached.parents[1] / "refs" / "main").write_text("f" * 40)
    assert directory_of(by_path).path != directory_of(by_name).path


def test_what_lm_studio_has_is_its_repository(home):
    """Its folder is where the id is served from, as long as the Hub cache has no copy."""
    folder = write_model(home / ".lmstudio/models/org/name")
    assert key(folder) == key("org/name")


def test_spellings_of_a_directory_are_one(tmp_path, monkeypatch):
    """Links, relative paths and the home lead to the same place."""
    folder = write_model(tmp_path / "home" / "models" / "mine")
    monkeypatch.chdir(folder.parent)
    (tmp_path / "link").symlink_to(folder.parent)
    spellings = [folder, f"{folder}/", "./mine", "~/models/mine", tmp_path / "link" / "mine"]
    assert len({key(spelling) for spelling in spellings}) == 1


def test_other_settings_are_another_server():
    """What is no name still tells servers apart."""
    spec = ServerSpec(source="org/x", served_name="org/x")
    changes = [
        {"source": "org/y"},
        {"revision": "v1"},
        {"engine": "simple"},
        {"server_args": ("--max-kv-size", "10")},
        {"server_env": (("A", "b"),)},
        {"kind": "embeddings"},
    ]
    keys = {spec.key(), *(dataclasses.replace(spec, **change).key() for change in changes)}
    assert len(keys) == len(changes) + 1
    assert dataclasses.replace(spec, revision="main").key() == spec.key()
    assert dataclasses.replace(spec, served_name="another").key() == spec.key()


def test_macos_tells_how_a_folder_is_kept(tmp_path, monkeypatch):
    """Letter case and the form of accents are the file system's there, so that it is asked."""
    kept = tmp_path / unicodedata.normalize("NFC", "modèle")
    kept.mkdir()

    if sys.platform != "darwin":
        _imitate_apfs(kept, monkeypatch)
    spellings = [kept, tmp_path / "MODÈLE", tmp_path / unicodedata.normalize("NFD", "modèle")]
    assert {real_path(str(spelling)) for spelling in spellings} == {str(kept)}
    assert real_path(str(tmp_path / "none")) == str(tmp_path / "none")


def _imitate_apfs(kept, monkeypatch):
    def fold(text):
        return unicodedata.normalize("NFC", str(text)).lower()

    opened = os.open

    def open_any_spelling(path, *arguments, **keywords):
        return opened(kept if fold(path) == fold(kept) else path, *arguments, **keywords)

    def ask(descriptor, command, argument):
        assert command == 50
        return os.fsencode(Path(f"/proc/self/fd/{descriptor}").readlink()).ljust(
            len(argument), b"\0"
        )

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_GETPATH", 50, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", ask)
    monkeypatch.setattr(os, "open", open_any_spelling)


@pytest.mark.parametrize("source", ["/x\0y", "/" + "a" * 5000, "/none"])
def test_a_path_that_leads_nowhere_is_itself(source):
    """A key can be told of a model that is gone."""
    assert identity_of(source) == (source, None)


def test_an_odd_cache_is_no_repository(home):
    """What merely looks like a copy in the cache is a directory like any other."""
    folder = home / ".cache/huggingface/hub/models--org--odd/snapshots/x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    assert identity_of(str(folder)) == (str(folder), None)
