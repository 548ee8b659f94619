"""What people paste, complete and type in place of a model's name is answered with the name."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError, UnknownModelError
from langchain_car_vllm.models import nearest_ids, parse_model_id
from langchain_car_vllm.models.catalog import catalog, recommendations

NAME = "org/name-7B"
SITES = [
    *("https://huggingface.co/", "http://www.hf.co/", "hf.co/", "HTTPS://HuggingFace.co/", "hf://"),
    *("https://hf-mirror.com/", "https://huggingface.co/api/models/", "git@hf.co:", "huggingface/"),
    *("https://huggingface.co/models/", "models/", "hf:", "vllm-mlx/https://huggingface.co/"),
]
BEHIND = ["/", "//", ".git", ":main", "@main"]
OF_A_SITE = ["/tree/main", "/blob/main/README.md", "?x#y", "/resolve/main/config.json", "#a"]
AROUND = ['""', "''", "``", "<>", "()", " ,", "\u200b\ufeff", "\u202a\u202c"]
SPELLINGS = [
    *(f"{site}{NAME}" for site in SITES),
    *(f"{NAME}{end}" for end in BEHIND),
    *(f"{SITES[0]}{NAME}{end}" for end in [*BEHIND, *OF_A_SITE]),
    *(f"{pair[0]}{NAME}{pair[1]}" for pair in AROUND),
    *("models--org--name-7B", "org\\name-7B", "org/ name-7B", "org//name-7B", "org/name\u20117B"),
]


def refused(text: str) -> UnknownModelError:
    with pytest.raises(UnknownModelError) as caught:
        parse_model_id(text)
    return caught.value


@pytest.mark.parametrize("text", SPELLINGS)
def test_another_spelling_is_answered_with_the_repository(text: str):
    """Whether or not the catalog knows it."""
    assert refused(text).hint == f"did you mean `{NAME}`?"


@pytest.mark.parametrize("text", SPELLINGS)
def test_an_adapter_is_spelt_like_a_model(text: str):
    """Its name is read by the same rule."""
    with pytest.raises(ConfigurationError, match="`adapter` cannot be") as caught:
        ChatVllmMlx("org/model", adapter=text.removeprefix("vllm-mlx/"))
    assert caught.value.hint == f"did you mean `{NAME}`?"


ends, names = (
    st.sampled_from(["", *BEHIND, *OF_A_SITE]),
    st.from_regex(r"[\w.\-]{1,9}", fullmatch=True),
)


@given(st.sampled_from(["", *SITES]), names, names, ends, st.sampled_from(["  ", *AROUND]))
def test_what_is_suggested_is_taken(site: str, org: str, name: str, end: str, around: str):
    """No hint leads to the next error."""
    text = f"{around[0]}{site}{org}/{name}{end}{around[1]}"
    try:
        parse_model_id(text, read_files=False)
    except UnknownModelError as error:
        for near in error.nearest:
            assert parse_model_id(near, read_files=False).source


@pytest.mark.parametrize(
    "text", [f"{NAME}@v2", f"https://huggingface.co/{NAME}/tree/v2", f"hf:{NAME}@v2/"]
)
def test_a_revision_is_not_lost(text: str):
    """It is a setting of its own here."""
    assert refused(text).hint == f'did you mean `{NAME}` with `revision="v2"`?'


@pytest.mark.parametrize(
    "text", ["hf.co/org/name-GGUF:Q4_K_M", "org/name-gguf@main", "org/name/x-Q4_K_M.gguf"]
)
def test_a_repository_of_llama_cpps_is_said_to_be_one(text: str):
    """Its name without the tag would only lead to the next error."""
    error = refused(text)
    assert "llama.cpp" in error.message
    assert "MLX conversion" in (error.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        *("https://huggingface.co/datasets/org/name", "https://huggingface.co/models/org", "@/@"),
        *("https://github.com/org/name", "s3://bucket/model", "{model}/x", "<org>/<repo>", "a/b/c"),
    ],
)
def test_nothing_is_made_up(text: str):
    """Other pages name no model of the Hub."""
    assert "did you mean" not in (refused(text).hint or "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gpt-oss:20b", "mlx-community/gpt-oss-20b-MXFP4-Q8"),
        ("gpt-oss-20b", "mlx-community/gpt-oss-20b-MXFP4-Q8"),
        ("openai/gpt-oss:20b", "mlx-community/gpt-oss-20b-MXFP4-Q8"),
        ("qwen3:1.7b", "mlx-community/Qwen3-1.7B-4bit"),
        ("hf.co/unsloth/Qwen3-4B-GGUF:Q4_K_M", "mlx-community/Qwen3-4B-4bit"),
        ("Qwen/Qwen3-4B:free", "mlx-community/Qwen3-4B-4bit"),
    ],
)
def test_other_tools_names_lead_to_what_is_recommended(typed: str, meant: str):
    """A tag of another program's is no part of a repository's name."""
    assert refused(typed).nearest[0] == meant


def test_all_that_is_recommended_is_near_to_its_own_name():
    """Also what the catalog does not have."""
    known = catalog().repositories
    for found in recommendations():
        assert found.model.startswith("vllm-mlx/") or found.model in known
        assert nearest_ids(found.model.lower())[0] == found.model


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A working directory with folders of models and adapters."""
    monkeypatch.chdir(tmp_path)
    for name in ("models/smol", "single", "a/b/c", "my models/x"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ("out/adapters", "adapters"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapters.safetensors").touch()
    return tmp_path


FOLDERS = ["models/smol", "single", "a/b/c", "my models/x"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("end", ["", "/", "//", "/config.json", "/."])
def test_a_folder_that_is_typed_without_a_dot_is_named_with_one(here: Path, folder: str, end: str):
    """As the shell completes it, and as the path of a file that it holds."""
    hint = refused(f"{folder}{end}").hint
    assert hint.startswith(f"did you mean `./{folder}`?")
    assert parse_model_id(f"./{folder}").source == str(here / folder)
    assert refused(f"file://{here / folder}").hint == f"did you mean `{here / folder}`?"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_of_a_model_leads_to_its_folder(here: Path, folder: str):
    """It was said to be no directory."""
    assert refused(f"./{folder}/config.json").nearest == (str(here / folder),)


@pytest.mark.parametrize(
    "text", ["out/adapters", "out/adapters/", "adapters", "adapters/adapters.safetensors"]
)
def test_an_adapter_of_this_machine_is_not_asked_for_at_the_hub(here: Path, text: str):
    """On an event loop the first call tells it."""
    folder = text.removesuffix("/adapters.safetensors").rstrip("/")
    with pytest.raises(ConfigurationError, match="the path of a folder here") as caught:
        ChatVllmMlx("org/model", adapter=text)
    assert caught.value.hint == f"did you mean `./{folder}`?"

    async def ask() -> None:
        await ChatVllmMlx("org/model", adapter="out/adapters").ainvoke("hi")

    with pytest.raises(ConfigurationError, match="the path of a folder here"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("names", "reason", "cure"),
    [
        (["x.gguf"], "llama.cpp", "MLX conversion"),
        (["adapter_config.json", "adapters.safetensors"], "a LoRA adapter", "`adapter=...`"),
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT adapter", "`org/base`"),
        (["model_index.json"], "diffusers", "tokenizer"),
    ],
)
def test_a_folder_of_something_else_is_said_to_be_that(tmp_path: Path, names, reason, cure):
    """The folder, and each file that gives it away."""
    for name in names:
        (tmp_path / name).write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    error = refused(str(tmp_path))
    assert reason in error.message
    assert cure in (error.hint or "")


def test_a_file_of_llama_cpps_is_no_model(tmp_path: Path):
    """Whatever lies beside it."""
    (tmp_path / "x-Q4.gguf").touch()
    assert "llama.cpp" in refused(str(tmp_path / "x-Q4.gguf")).message


@pytest.mark.parametrize("inside", ["", "snapshots", "refs"])
def test_a_folder_of_the_hubs_cache_is_answered_with_its_repository(tmp_path: Path, inside: str):
    """Its snapshots lie deeper, under the names of commits."""
    folder = tmp_path / "hub" / "models--org--name"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    assert refused(str(folder / inside)).nearest == ("org/name",)
    assert parse_model_id(str(folder / "snapshots" / "abc")).is_local


def test_a_pointer_of_git_is_no_config(tmp_path: Path):
    """It was said to hold an unexpected value."""
    note = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 2263\n"
    (tmp_path / "config.json").write_text(note)
    error = refused(str(tmp_path))
    assert "is a Git LFS pointer" in error.message
    assert "git lfs pull" in (error.hint or "")
