"""Whether the server can load a model, told before anything is installed or started."""

import json
import struct

import pytest
from fakes.weights import weights_of

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models import find_snapshot, read_model_facts
from langchain_car_vllm.models.servable import check_servable, find_missing, find_obstacle
from langchain_car_vllm.models.snapshot import TOKENIZERS, holds_model, wanted_names
from langchain_car_vllm.models.weights import missing_shards

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000000000\n"
BAD_HEADER = struct.pack("<Q", 10) + b"not JSON {" + bytes(100)


def lying(**said: object) -> bytes:
    """Return weights whose header contradicts itself."""
    header = {"w": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10], **said}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(100)


FAULTS = {
    "no config": ({"config__json": None}, "no `config.json`", "safetensors"),
    "no model_type": ({"config__json": {}}, "name a `model_type`", "choose"),
    "no tokenizer": ({"tokenizer__json": None}, "no tokenizer", "add the tokenizer"),
    "empty tokenizer": ({"tokenizer__json": b""}, "`tokenizer.json` is empty", "again"),
    "tokenizer pointer": ({"tokenizer__json": POINTER}, "Git LFS pointer", "git lfs pull"),
    "no weights": ({"model__safetensors": None}, "no safetensors weights", "choose"),
    "empty": ({"model__safetensors": b""}, "is empty", "again"),
    "pointer": ({"model__safetensors": POINTER}, "Git LFS pointer", "git lfs pull"),
    "cut off": ({"model__safetensors": weights_of(5_000_000)[:-9]}, "cut off: 5.0 MB of", "again"),
    "cut header": ({"model__safetensors": weights_of(300)[:50]}, "not in the safetensors", "again"),
    "zeros": ({"model__safetensors": bytes(500)}, "not in the safetensors format", "again"),
    "no JSON": ({"model__safetensors": BAD_HEADER}, "not in the safetensors format", "again"),
    "GGUF": ({"model__safetensors": None, "m__gguf": b"GGUF"}, "GGUF", "MLX conversion"),
    "pickle": ({"model__safetensors": None, "pytorch_model__bin": b"x"}, "PyTorch", "MLX"),
    "MLX's old": ({"model__safetensors": None, "weights__npz": b"x"}, "old format", "MLX"),
    "other name": (
        {"model__safetensors": None, "weights__00__safetensors": weights_of(200)},
        "its weights are `weights.00.safetensors`",
        "rename",
    ),
    "missing shard": (
        {
            "model__safetensors__index__json": {
                "weight_map": {"a": "model.safetensors", "b": "model-9.safetensors"}
            }
        },
        "`model-9.safetensors` is missing",
        "again",
    ),
    "missing shard without an index": (
        {"model__safetensors": None, "model-00001-of-00003__safetensors": weights_of(200)},
        "`model-00002-of-00003.safetensors` is missing, although the names of its other weights",
        "again",
    ),
    "larger shape": ({"model__safetensors": lying(shape=[99])}, "not in the safetensors", "again"),
    "negative shape": (
        {"model__safetensors": lying(shape=[-2, -5])},
        "not in the safetensors format",
        "again",
    ),
    "wider type": ({"model__safetensors": lying(dtype="F32")}, "not in the safetensors", "again"),
    "reversed": (
        {"model__safetensors": lying(data_offsets=[20, 10])},
        "not in the safetensors format",
        "again",
    ),
    "negative begin": (
        {"model__safetensors": lying(data_offsets=[-10, 0])},
        "not in the safetensors format",
        "again",
    ),
}


@pytest.mark.parametrize(("files", "reason", "cure"), FAULTS.values(), ids=FAULTS)
def test_what_the_server_cannot_load_is_told_with_its_cure(whole_model, files, reason, cure):
    """A start would have ended in lines of traceback; this is one sentence."""
    folder = whole_model(**files)
    with pytest.raises(UnservableModelError) as caught:
        check_servable(folder, "org/x")
    assert reason in caught.value.message
    assert cure in caught.value.hint
    if files.get("config__json", {}) is not None:
        with pytest.raises(UnservableModelError):
            ChatVllmMlx(model=str(folder), validate_model_on_init=True)


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "qwen.tiktoken"])
def test_what_is_servable_is_there(whole_model, tokenizer: str):
    """A model whose tokenizer has another name, as Kimi's, is neither refused nor fetched anew."""
    folder = whole_model(**{"tokenizer__json": None, tokenizer.replace(".", "__"): b"{}"})
    check_servable(folder, "org/x")
    assert holds_model(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "tiktoken.model", "q.tiktoken"]
)
@pytest.mark.parametrize("multimodal", [True, False])
def test_tokenizers_are_fetched(name: str, *, multimodal: bool):
    """What the server fetches on both its routes counts as a part of the model."""
    assert wanted_names([name, "README.md"], multimodal=multimodal, trust=False) == [name]


def test_a_whole_model_is_servable(whole_model):
    """The check lets through what works, in one part or in many."""
    assert find_obstacle(whole_model()) is None
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shards = {f"model-{n}__safetensors": weights_of(300) for n in (1, 2)}
    folder = whole_model("many", model__safetensors__index__json=index, **shards)
    assert find_obstacle(folder) is None
    for begin in (0, 1):
        parts = [f"model-{begin + n:05}-of-00002__safetensors" for n in range(2)]
        shards = dict.fromkeys(parts, weights_of(300))
        folder = whole_model(f"from {begin}", model__safetensors=None, **shards)
        assert find_obstacle(folder) is None


@pytest.mark.parametrize("config", [{}, {"vision_config": {}}])
@pytest.mark.parametrize("parts", [("model",), ("model-00001-of-00002", "model-00002-of-00002")])
def test_an_index_of_an_earlier_form_is_none(whole_model, config, parts):
    """A conversion that left it behind is served by both routes, and is whole."""
    index = {"weight_map": {"a": "model-00001-of-00004.safetensors", "b": "model-9.safetensors"}}
    files = {f"{part}__safetensors": weights_of(300) for part in parts}
    folder = whole_model(
        config__json={"model_type": "x", **config},
        **{"model__safetensors": None, **files},
        model__safetensors__index__json=index,
    )
    assert find_obstacle(folder) is None
    assert holds_model(folder)
    assert read_model_facts(folder, "org/x").weights_bytes == 300 * len(parts)
    (folder / f"{parts[0]}.safetensors").unlink()
    assert find_obstacle(folder) is not None
    assert not holds_model(folder)


@pytest.mark.parametrize("stem", ["model-vision-", "model_mtp-", "model"])
def test_a_whole_part_beside_the_weights_is_no_other_form_of_them(whole_model, stem):
    """It may arrive before them, and the model is not here yet."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    folder = whole_model(
        model__safetensors=None,
        model__safetensors__index__json=index,
        **{f"{stem}00001-of-00001__safetensors": weights_of(300)},
    )
    assert find_obstacle(folder) is not None
    assert not holds_model(folder)


def test_shards_that_are_counted_beyond_reason_are_missing():
    """No name makes the look take long."""
    assert len(missing_shards(["model-1-of-999999999.safetensors"])) <= 10_001
    assert not missing_shards(["model-1-of-2.safetensors", "model-2-of-2.safetensors", "x-of-y.z"])


def test_a_file_that_changes_is_looked_at_anew(whole_model):
    """What is remembered of a file's header ends with the file."""
    folder = whole_model()
    assert find_obstacle(folder) is None
    (folder / "model.safetensors").write_bytes(weights_of(5000)[:-1])
    assert "cut off" in find_obstacle(folder).reason


@pytest.mark.parametrize(
    ("config", "loaded"),
    [
        ({"model_type": "llama"}, 1000),
        ({"model_type": "x", "vision_config": {}}, 1000 + 400),
    ],
)
def test_only_what_the_server_loads_counts(whole_model, config, loaded):
    """A second copy of the weights neither takes memory nor is fetched."""
    folder = whole_model(config__json=config, vision__safetensors=weights_of(400))
    (folder / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors"):
        (folder / name).write_bytes(weights_of(5000))
    assert read_model_facts(folder, "org/x").weights_bytes == loaded
    assert find_obstacle(folder) is None
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")]
    wanted = wanted_names(names, multimodal="vision_config" in config)
    assert sum((folder / name).stat().st_size for name in wanted) == loaded


def test_the_index_decides_on_the_route_for_media(whole_model):
    """Files that it does not name are not loaded there."""
    config = {"model_type": "x", "vision_config": {}}
    index = {"weight_map": {"a": "model.safetensors"}}
    folder = whole_model(
        config__json=config,
        extra__safetensors=weights_of(900),
        model__safetensors__index__json=index,
    )
    assert read_model_facts(folder, "org/x").weights_bytes == 1000
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": 5}))
    assert read_model_facts(folder, "org/x").weights_bytes == 1900


@pytest.mark.parametrize("config", [{}, {"vision_config": {}}])
@pytest.mark.parametrize("shards", [("model",), ("model-00001-of-00002", "model-00002-of-00002")])
def test_what_macos_puts_beside_files_is_no_part_of_a_model(home, tmp_path, config, shards):
    """On disks of other systems, such as an exFAT one, each file has a hidden one beside it."""
    for folder in (tmp_path / "model", home / ".lmstudio" / "models" / "org" / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        (folder / "tokenizer.json").write_text("{}")
        for shard in shards:
            (folder / f"{shard}.safetensors").write_bytes(weights_of(5000))
        former = read_model_facts(folder, "m").weights_bytes
        for file in [*folder.iterdir()]:
            (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7" + bytes(4092))
        (folder / "._model-00001-of-00009.safetensors").write_bytes(bytes(4096))
        (folder / ".DS_Store").write_bytes(bytes(6148))
        assert find_obstacle(folder) is None
        assert read_model_facts(folder, "m").weights_bytes == former
    assert find_snapshot("org/model") == folder


@pytest.mark.parametrize(
    ("names", "reason", "cure"),
    [
        (["adapter_config.json", "adapters.safetensors"], "a LoRA adapter", "`adapter=...`"),
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT adapter", "merge it"),
        (["config.json", "adapter_model.safetensors"], "PEFT adapter", "merge it"),
        (["model_index.json", "README.md"], "diffusers", "tokenizer"),
        (["x-Q4.gguf", "config.json"], "llama.cpp", "MLX conversion"),
    ],
)
def test_a_listing_of_something_else_is_said_to_be_that(names: list[str], reason: str, cure: str):
    """The Hub lists names alone; what the folder of one is told is the same."""
    found = find_missing(names, lambda name: {} if name == "config.json" else None)
    assert found is not None
    assert reason in found.reason
    assert cure in found.hint
