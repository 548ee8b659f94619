import json

import pytest

from langchain_car_vllm.errors import UnknownModelError
from langchain_car_vllm.models import nearest_ids, parse_model_id
from langchain_car_vllm.models.catalog import catalog


@pytest.fixture
def model_directory(tmp_path):
    folder = tmp_path / "models" / "Qwen3-0.6B-8bit"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    return folder


@pytest.mark.parametrize("entry", catalog().entries, ids=lambda entry: entry.name)
def test_every_catalog_id_names_its_repository(entry):
    """A catalog id is served from its Hub repository and carries what the catalog states."""
    model = parse_model_id(f"vllm-mlx/{entry.name}")
    assert model.name == entry.name
    assert model.source == entry.repository
    assert not model.is_local
    assert model.family
    assert (model.context_window, model.size_mb, model.ram_mb) == (
        entry.context_window,
        entry.size_mb,
        entry.ram_mb,
    )


@pytest.mark.parametrize(
    "text",
    [
        "vllm-mlx/qwen3.6-35b-a3b:4bit",
        "vllm-mlx/qwen3.6-35b-a3b-4bit",
        "VLLM-MLX/Qwen3.6-35B-A3B:4BIT",
        "  vllm-mlx/qwen3.6-35b-a3b:4bit\n",
    ],
)
def test_spellings_of_one_catalog_id_are_equal(text):
    """Case, `:` against `-` and surrounding blanks make no other model."""
    assert parse_model_id(text) == parse_model_id("vllm-mlx/qwen3.6-35b-a3b:4bit")
    assert parse_model_id(text).name == "qwen3.6-35b-a3b:4bit"


@pytest.mark.parametrize(
    "text", ["mlx-community/Qwen3-4B-4bit", "vllm-mlx/mlx-community/Qwen3-4B-4bit"]
)
def test_hub_repositories_need_no_catalog(text):
    """A Hub repository is taken as it is, with or without the prefix."""
    model = parse_model_id(text)
    assert model.name == model.source == "mlx-community/Qwen3-4B-4bit"
    assert model.family == "qwen3"
    assert model.context_window is None


def test_a_repository_of_the_catalog_keeps_the_facts():
    """Naming the repository of a catalog entry gives the same facts under the repository's name."""
    model = parse_model_id("mlx-community/gemma-4-12B-it-4bit")
    assert model.name == "mlx-community/gemma-4-12B-it-4bit"
    assert model.context_window == 131072


def test_local_directories_become_absolute(model_directory, monkeypatch):
    """Every way to write a directory leads to the same absolute path."""
    monkeypatch.chdir(model_directory.parent)
    monkeypatch.setenv("HOME", str(model_directory.parent))
    name = model_directory.name
    spellings = [str(model_directory), f"./{name}", f"../models/{name}", f"~/{name}", f"./{name}/"]
    models = {parse_model_id(text) for text in spellings}
    assert {model.source for model in models} == {str(model_directory)}
    assert len(models) == 1
    model = models.pop()
    assert model.is_local
    assert model.name == model.source
    assert model.family == "qwen3"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("gpt-4o", "it starts with neither"),
        ("qwen3.6-35b-a3b:4bit", "it starts with neither"),
        ("vllm-mlx/", "the catalog has no model of that name"),
        ("vllm-mlx/gemma-4", "the catalog has no model of that name"),
        ("vllm-mlx/vllm-mlx", "the catalog has no model of that name"),
        ("a/b/c", "a Hub repository is written"),
        ("org/", "a Hub repository is written"),
        ("org/re po", "a Hub repository is written"),
        ("org/repo:4bit", "a Hub repository is written"),
        ("org/../repo", "a Hub repository is written"),
        ("org/repo.git", "a Hub repository is written"),
        ("-org/repo\n-x", "a Hub repository is written"),
        ("o" * 60 + "/" + "r" * 60, "a Hub repository is written"),
        ("/does/not/exist", "there is no directory"),
        ("./does-not-exist", "there is no directory"),
    ],
)
def test_anything_else_is_refused_with_the_reason(text, reason):
    """What names no model is an error at once that says why and what to write."""
    with pytest.raises(UnknownModelError, match=reason) as caught:
        parse_model_id(text)
    assert caught.value.hint
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "holds no `config.json`"),
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        (b"\xff\xfe{", "cannot be read"),
    ],
)
def test_a_directory_that_is_no_model_is_refused(tmp_path, content, reason):
    """A directory counts only with a readable `config.json`."""
    if isinstance(content, bytes):
        (tmp_path / "config.json").write_bytes(content)
    elif content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnknownModelError, match=reason):
        parse_model_id(str(tmp_path))


def test_a_file_is_no_model(tmp_path):
    """Naming a file instead of its directory says so."""
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UnknownModelError, match="is not a directory"):
        parse_model_id(str(file))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("qwen3.6-35b-a3b:4bit", "vllm-mlx/qwen3.6-35b-a3b:4bit"),
        ("vllm-mlx/qwen3.6-35b", "vllm-mlx/qwen3.6-35b-a3b:4bit"),
        ("vllm-mlx/gemma4-12b-it", "vllm-mlx/gemma-4-12b-it"),
        ("gemma-4-e2b", "vllm-mlx/gemma-4-e2b-it"),
        ("mlx-community/Qwen3-4B:4bit", "mlx-community/Qwen3-4B-4bit"),
        ("mlx-comunity/Llama-3.2-1B-Instruct", "mlx-community/Llama-3.2-1B-Instruct-4bit"),
    ],
)
def test_the_nearest_id_is_named_first(text, nearest):
    """A misspelt id is answered with the one that was meant."""
    assert nearest_ids(text)[0] == nearest


def test_the_error_names_the_nearest_ids():
    """The error carries the nearest ids and shows them as its hint."""
    with pytest.raises(UnknownModelError) as caught:
        parse_model_id("vllm-mlx/gemma-4-12b")
    assert caught.value.nearest[0] == "vllm-mlx/gemma-4-12b-it"
    assert "did you mean `vllm-mlx/gemma-4-12b-it`" in str(caught.value)
