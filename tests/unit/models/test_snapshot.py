import json

import pytest

from langchain_car_vllm.models import find_snapshot
from langchain_car_vllm.models.download import measure_download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "mlx-community/Qwen3-4B-4bit"
FILES = {
    "config.json": json.dumps({"model_type": "qwen3"}),
    "tokenizer.json": "{}",
    "model-00001-of-00002.safetensors": "first half",
    "model-00002-of-00002.safetensors": "second half",
    "model.safetensors.index.json": json.dumps(
        {
            "weight_map": {
                "a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
            }
        }
    ),
}


def fill_cache(hub, files=FILES, *, revision="main", listed=None, commit=COMMIT):
    """Lay files out as huggingface_hub does, symlinked from `snapshots` to `blobs`."""
    folder = hub / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"blob{number}"
        blob.write_text(content)
        (snapshot / name).symlink_to(blob)
    if revision:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
    if listed is not None:
        (folder / "trees").mkdir()
        entries = {name: {"size": size, "blob_id": "0"} for name, size in listed.items()}
        (folder / "trees" / f"{commit}.json").write_text(
            json.dumps({"format_version": 1, "files": entries})
        )
    return snapshot


def sizes(files=FILES):
    return {name: len(content) for name, content in files.items()}


@pytest.fixture
def hub(home):
    return home / ".cache" / "huggingface" / "hub"


def test_an_empty_machine_has_no_snapshot():
    """Nothing is found where nothing is, and nothing is created."""
    assert find_snapshot(REPOSITORY) is None


def test_the_hub_cache_is_found(hub):
    """A complete snapshot of the default branch is found by its ref."""
    assert find_snapshot(REPOSITORY) is None
    snapshot = fill_cache(hub)
    assert find_snapshot(REPOSITORY) == snapshot


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
)
def test_the_hub_variables_move_the_cache(tmp_path, monkeypatch, variable, below):
    """The cache is where the Hub's own variables put it."""
    snapshot = fill_cache(tmp_path / "elsewhere" / below)
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert find_snapshot(REPOSITORY) == snapshot


@pytest.mark.parametrize("revision", ["v1.0", COMMIT])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, revision):
    """A revision is looked up as a ref, then as a commit; another one is not taken for it."""
    snapshot = fill_cache(hub, revision=None if revision == COMMIT else revision)
    assert find_snapshot(REPOSITORY, revision) == snapshot
    assert find_snapshot(REPOSITORY) is None


@pytest.mark.parametrize("missing", sorted(FILES))
def test_a_snapshot_with_a_missing_file_is_incomplete(hub, missing):
    """With the Hub's listing at hand, any file that the server fetches must be there."""
    partial = {name: content for name, content in FILES.items() if name != missing}
    fill_cache(hub, partial, listed=sizes())
    assert find_snapshot(REPOSITORY) is None


@pytest.mark.parametrize("missing", sorted({*FILES} - {"model.safetensors.index.json"}))
def test_without_a_listing_the_index_decides(hub, missing):
    """Caches of older clients hold no listing; then the index of the weights is asked."""
    fill_cache(hub, {name: content for name, content in FILES.items() if name != missing})
    assert find_snapshot(REPOSITORY) is None


@pytest.mark.parametrize(
    ("weights", "complete"),
    [
        (["model.safetensors"], True),
        (["model-00001-of-00002.safetensors"], False),
        (["model-00002-of-00002.safetensors"], False),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True),
        (["model.safetensors", "model-00001-of-00001.safetensors"], True),
        (["weights.00001-of-00003.safetensors", "weights.00003-of-00003.safetensors"], False),
    ],
)
def test_without_an_index_the_names_decide(home, weights, complete):
    """The index may come last; until then a part's own name tells how many there are."""
    directory = home / ".lmstudio/models" / REPOSITORY
    directory.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", *weights):
        (directory / name).write_text("{}")
    assert find_snapshot(REPOSITORY) == (directory if complete else None)


def test_a_truncated_file_is_incomplete(hub):
    """A file of another size than the listing's does not count."""
    fill_cache(hub, listed=sizes() | {"model-00002-of-00002.safetensors": 10**9})
    assert find_snapshot(REPOSITORY) is None


def test_files_that_are_never_fetched_may_be_missing(hub):
    """What the server leaves out of a download does not make it incomplete."""
    listed = sizes() | {"README.md": 5, ".gitattributes": 1, "consolidated.safetensors": 10**9}
    snapshot = fill_cache(hub, listed=listed)
    assert find_snapshot(REPOSITORY) == snapshot


def test_a_multimodal_model_needs_all_weights(hub):
    """For a multimodal model the server fetches every `*.safetensors`."""
    files = FILES | {"config.json": json.dumps({"model_type": "qwen3_vl", "vision_config": {}})}
    fill_cache(hub, files, listed=sizes(files) | {"vision.safetensors": 10})
    assert find_snapshot(REPOSITORY) is None


def test_a_dangling_blob_is_incomplete(hub):
    """A snapshot whose blob was deleted is not complete."""
    snapshot = fill_cache(hub)
    (snapshot / "model-00001-of-00002.safetensors").resolve().unlink()
    assert find_snapshot(REPOSITORY) is None


def test_an_unreadable_listing_falls_back_to_the_index(hub):
    """A corrupt listing is treated as if it were not there."""
    snapshot = fill_cache(hub, listed={})
    listing = snapshot.parents[1] / "trees" / f"{COMMIT}.json"
    listing.write_text("{")
    assert find_snapshot(REPOSITORY) == snapshot


@pytest.mark.parametrize("folder", [".lmstudio/models", ".cache/lm-studio/models"])
def test_lm_studio_may_hold_it(home, folder):
    """A model that LM Studio downloaded is used, for the default revision only."""
    directory = home / folder / REPOSITORY
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_text(content)
    assert find_snapshot(REPOSITORY) == directory
    assert find_snapshot(REPOSITORY, "v1.0") is None
    (directory / "model-00002-of-00002.safetensors").unlink()
    assert find_snapshot(REPOSITORY) is None


@pytest.mark.parametrize("how", ["downloads", "downloads in the moved home", "home", "with ~"])
def test_lm_studio_may_have_moved_it(home, tmp_path, how):
    """Its settings name another folder of downloads, and a file in the home another home."""
    moved = tmp_path / "external"
    lm_home = tmp_path / "moved-home" if "home" in how else home / ".lmstudio"
    lm_home.mkdir(parents=True)
    if "home" in how:
        (home / ".lmstudio-home-pointer").write_text(f"{lm_home}\n")
    if how == "home":
        moved = lm_home / "models"
    elif how == "with ~":
        moved = home / "Elsewhere"
        (lm_home / "settings.json").write_text('{"downloadsFolder": "~/Elsewhere"}')
    else:
        (lm_home / "settings.json").write_text(json.dumps({"downloadsFolder": str(moved)}))
    directory = moved / REPOSITORY
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_text(content)
    assert find_snapshot(REPOSITORY) == directory


@pytest.mark.parametrize(
    "settings", ["{", "[]", '{"downloadsFolder": 7}', '{"downloadsFolder": "relative"}', "{}"]
)
def test_odd_settings_of_lm_studio_are_passed_over(home, settings):
    """Its usual folder is still looked at."""
    (home / ".lmstudio").mkdir()
    (home / ".lmstudio" / "settings.json").write_text(settings)
    (home / ".lmstudio-home-pointer").write_bytes(b"\xff\0nonsense")
    directory = home / ".lmstudio/models" / REPOSITORY
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_text(content)
    assert find_snapshot(REPOSITORY) == directory


def test_without_symbolic_links_what_is_there_counts(hub):
    """On a disk without links a whole file lies in the snapshot, and no blob is kept."""
    snapshot = fill_cache(hub, {}, listed=sizes())
    name, content = next(iter(FILES.items()))
    (snapshot / name).write_text(content)
    weights = "model-00001-of-00002.safetensors"
    (snapshot / weights).write_text(FILES[weights])
    (snapshot / "config.json").write_text(FILES["config.json"])
    written = {name, weights, "config.json"}
    done, total = measure_download(REPOSITORY)
    assert done == sum(len(FILES[name]) for name in written)
    assert total == sum(sizes().values())
    assert find_snapshot(REPOSITORY) is None
    for name, content in FILES.items():
        (snapshot / name).write_text(content)
    assert find_snapshot(REPOSITORY) == snapshot


def test_a_local_directory_is_its_own_snapshot(tmp_path):
    """An absolute directory is taken as it is, as long as it holds a `config.json`."""
    assert find_snapshot(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{}")
    assert find_snapshot(str(tmp_path)) == tmp_path
