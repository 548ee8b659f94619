import json

import pytest

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import ConfigurationError, UnknownModelError
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
    assert model.context_window == entry.context_window


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
        (None, "has no `config.json`"),
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
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


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("llama3.2", "mlx-community/Llama-3.2-1B-Instruct-4bit"),
        ("llama3.2:3b", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        ("llama3.1", "mlx-community/Llama-3.1-8B-Instruct-4bit"),
        ("mistral", "mlx-community/Devstral-Small-2507-4bit"),
        ("qwen3:4b", "mlx-community/Qwen3-4B-4bit"),
        ("qwen3:0.6b", "mlx-community/Qwen3-0.6B-8bit"),
        ("deepseek-r1:7b", "mlx-community/DeepSeek-R1-Distill-Qwen-7B-4bit"),
        ("gemma4:12b", "vllm-mlx/gemma-4-12b-it"),
    ],
)
def test_names_of_other_tools_lead_to_the_model(typed, nearest):
    """What a user of another tool types is answered with the same model and the same size."""
    with pytest.raises(UnknownModelError) as caught:
        parse_model_id(typed)
    assert caught.value.nearest[0] == nearest


def test_a_name_that_fits_nothing_gets_no_suggestion():
    """A model of somebody else's service is not answered with an unlike one."""
    assert nearest_ids("gpt-4o") == ()


def test_a_folder_that_looks_like_a_repository_is_asked_about(model_directory, monkeypatch):
    """`models/name` may be both, so that the user says which; with the prefix it is the Hub's."""
    monkeypatch.chdir(model_directory.parents[1])
    name = f"models/{model_directory.name}"
    with pytest.raises(UnknownModelError, match="a folder here has the same name") as caught:
        parse_model_id(name)
    assert f"`./{name}`" in caught.value.hint
    assert not parse_model_id(f"vllm-mlx/{name}").is_local
    assert not parse_model_id(name, read_files=False).is_local


def test_a_path_object_is_a_path(model_directory, monkeypatch):
    """Also a relative one that looks like a repository."""
    monkeypatch.chdir(model_directory.parents[1])
    relative = model_directory.relative_to(model_directory.parents[1])
    models = {parse_model_id(path).source for path in (model_directory, relative)}
    assert models == {str(model_directory)}
    assert ChatVllmMlx(relative)._spec().source == str(model_directory)
    assert ChatVllmMlx(model=relative).model == str(model_directory)


def test_a_model_may_be_named_without_its_keyword(model_directory):
    """As every other class takes its main argument; twice is an error."""
    assert ChatVllmMlx(str(model_directory)).model == str(model_directory)
    assert VllmMlxEmbeddings("org/embedder").model == "org/embedder"
    with pytest.raises(ConfigurationError, match="twice"):
        ChatVllmMlx("org/a", model="org/b")


@pytest.mark.parametrize("given", [{}, {"model": ""}, {"model": "  "}])
def test_without_a_model_one_is_named_that_every_mac_holds(given):
    """The hint of a missing `model` names a small one, and who knows those that fit."""
    with pytest.raises(ConfigurationError, match="`model` is") as caught:
        ChatVllmMlx(**given)
    assert "`mlx-community/Qwen3-4B-4bit`" in caught.value.hint
    assert "`car-vllm recommend`" in caught.value.hint


def test_a_folder_that_is_not_there_is_answered_with_its_neighbours(model_directory):
    """A misspelt folder leads to the one beside it, and the folder above to what is in it."""
    wrong = model_directory.with_name("qwen3-0.6b-8bits")
    with pytest.raises(UnknownModelError, match="there is no directory") as caught:
        parse_model_id(str(wrong))
    assert caught.value.nearest == (str(model_directory),)
    with pytest.raises(UnknownModelError, match=r"has no `config\.json`") as caught:
        parse_model_id(str(model_directory.parent))
    assert caught.value.nearest == (str(model_directory),)
    with pytest.raises(UnknownModelError, match=r"has no `config\.json`") as caught:
        parse_model_id("/etc")
    assert "a tokenizer" in caught.value.hint


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("{models}/zzz", "holds `Qwen3-0.6B-8bit`"),
        ("{models}/none/zzz", "`{models}/none` is missing as well"),
        ("/etc/zzz", "`/etc` exists, but has no model"),
    ],
)
def test_a_folder_that_is_like_no_other_is_answered_with_what_is_there(
    model_directory, place, said
):
    """Whoever mistyped a path learns which part of it is wrong."""
    models = model_directory.parent
    with pytest.raises(UnknownModelError, match="there is no directory") as caught:
        parse_model_id(place.format(models=models))
    assert said.format(models=models) in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("https://huggingface.co/org/name-7B", "http://hf.co/org/name-7B", "hf.co/org/name-7B"),
        *("https://huggingface.co/org/name-7B/tree/main", "huggingface.co/org/name-7B?x#y"),
        "org/name-7B@main",
    ],
)
def test_a_page_of_the_hub_is_answered_with_its_repository(text: str):
    """What people paste from a browser, or write as other programs have it."""
    with pytest.raises(UnknownModelError) as refused:
        parse_model_id(text)
    assert refused.value.hint == "did you mean `org/name-7B`?"


@pytest.mark.parametrize("text", ["https://huggingface.co/datasets/org/name", "@/@"])
def test_other_pages_of_the_hub_name_no_model(text: str):
    """Nothing is made up."""
    with pytest.raises(UnknownModelError) as refused:
        parse_model_id(text)
    assert "did you mean" not in (refused.value.hint or "")
