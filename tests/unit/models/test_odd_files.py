"""Whatever the files of a model hold, what comes out is an answer or an error of this package."""

import contextlib
import errno
import json
import os
import struct
from pathlib import Path

import pytest
from fakes.weights import weights_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import CarVllmError, UnservableModelError
from langchain_car_vllm.models import find_snapshot, model_profile, parse_model_id, read_model_facts
from langchain_car_vllm.models.download import measure_download
from langchain_car_vllm.models.model_files import load_object, read_bytes
from langchain_car_vllm.models.servable import find_obstacle
from langchain_car_vllm.models.snapshot import find_commit, served_source
from langchain_car_vllm.models.weights import find_damage, missing_shards, read_shapes

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, -400_000, 10**8, 10**30, True, None, "64", [3, 3, 4], {}, 1e999, 0.5]),
    st.floats(),
)
SCALARS = st.one_of(NUMBERS, st.text(max_size=20), st.booleans(), st.none())
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMERIC = (
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"),
    *("max_position_embeddings", "sliding_window", "kv_lora_rank", "qk_rope_head_dim"),
    *("num_kv_shared_layers", "full_attention_interval", "attn_layer_period", "global_head_dim"),
    *("sliding_window_pattern", "num_global_key_value_heads", "linear_num_value_heads"),
)
OTHER = (
    *("model_type", "architectures", "layer_types", "text_config", "vision_config", "model_file"),
    *("auto_map", "hybrid_override_pattern", "linear_attn_config", "rope_scaling"),
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(NUMERIC, NUMBERS)
    | dict.fromkeys(OTHER, ANYTHING)
    | {"model_type": st.one_of(st.just("llama"), ANYTHING)},
)
NESTED = st.fixed_dictionaries({}, optional={"text_config": CONFIGS, "layer_types": ANYTHING})
NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "config.json",
                "tokenizer.json",
                "model.safetensors",
                "../../etc/passwd",
                "/etc/passwd",
            ),
            *("model-00001-of-00002.safetensors", "model-1-of-99999999999.safetensors", "", "."),
            *("a\0b", "x" * 5000, "modeling.py", "é", "sub/../..", "a//b"),
        ]
    ),
    st.text(max_size=30),
)
GENERATIONS = st.dictionaries(
    st.sampled_from(["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]), NUMBERS
)
INDEXES = st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=5), NAMES)})
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "size": NUMBERS,
        "blob_id": st.one_of(NAMES, SCALARS),
        "lfs_sha256": st.one_of(NAMES, SCALARS, st.sampled_from(["**", "../*", "[", "a" * 64])),
    },
)
TREES = st.fixed_dictionaries({"files": st.dictionaries(NAMES, st.one_of(ENTRIES, ANYTHING))})


def look(folder: Path, name: str = "org/odd") -> None:
    """Ask everything that is asked of a folder before a start."""
    for ask in (
        lambda: read_model_facts(folder, name),
        lambda: find_obstacle(folder),
        lambda: find_snapshot(str(folder)),
        lambda: model_profile(parse_model_id(str(folder))),
    ):
        with contextlib.suppress(CarVllmError):
            ask()


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())


@SETTINGS
@given(config=st.one_of(CONFIGS, NESTED, ANYTHING, st.binary(max_size=40)))
def test_any_config_is_read_or_refused(whole_model, config):
    """No `config.json` leads to an error of another kind, and no number to one that is absurd."""
    folder = whole_model(config__json=config)
    look(folder)
    with contextlib.suppress(CarVllmError):
        facts = read_model_facts(folder, "org/odd", trust=True)
        assert facts.context_window is None or 0 < facts.context_window < 2**40
        assert facts.kv is None or 0 <= facts.kv.size(100_000) < 2**80
        assert 0 < facts.bits <= 64


@SETTINGS
@given(generation=st.one_of(GENERATIONS, ANYTHING), index=st.one_of(INDEXES, ANYTHING))
def test_any_other_file_is_read_or_left_out(whole_model, generation, index):
    """Sampling defaults and the index of the weights are somebody else's too."""
    folder = whole_model()
    write(folder, "generation_config.json", generation)
    write(folder, "model.safetensors.index.json", index)
    write(folder, "tokenizer_config.json", generation)
    look(folder)
    facts = read_model_facts(folder, "org/odd", trust=True)
    assert all(value == value and abs(value) < 10**7 for value in facts.sampling.values())  # noqa: PLR0124


@SETTINGS
@given(
    tree=st.one_of(TREES, ANYTHING, st.binary(max_size=20)),
    ref=st.one_of(st.just(COMMIT), NAMES, st.just("../../../../outside")),
)
def test_any_cache_is_read_within_the_cache(home, tree, ref):
    """Whatever a listing and a ref name, no copy is found outside the Hub cache."""
    folder = home / ".cache/huggingface/hub/models--org--odd"
    snapshot = folder / "snapshots" / COMMIT
    for part in (snapshot, folder / "refs", folder / "trees", folder / "blobs"):
        part.mkdir(parents=True, exist_ok=True)
    write(snapshot, "config.json", {"model_type": "llama"})
    write(folder / "trees", f"{COMMIT}.json", tree)
    (folder / "refs" / "main").write_bytes(ref.encode("utf-8", "surrogatepass"))
    found = find_snapshot("org/odd")
    assert found is None or folder in found.resolve().parents
    done, total = measure_download("org/odd")
    assert done >= 0
    assert total is None or done <= total
    assert served_source(snapshot, "org/odd") in {"org/odd", str(snapshot)}


@pytest.mark.parametrize(
    "ref", ["../../../../outside", "..", ".", "/tmp", "a/b", "x\0y", "é" * 200]
)
def test_a_ref_names_a_folder_of_the_cache(home, ref):
    """What stands in `refs/main` is no path."""
    folder = home / ".cache/huggingface/hub/models--org--odd"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(ref)
    assert find_commit("org/odd") is None
    outside = home / "outside"
    outside.mkdir()
    write(outside, "config.json", {"model_type": "llama"})
    assert find_snapshot("org/odd") is None


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a\0b", "..", "-x"])
def test_a_revision_is_no_path(revision):
    """A revision that would lead elsewhere is not looked up."""
    assert find_commit("org/odd", revision) is None


ODD = {
    "null size": {"model_type": "llama", "hidden_size": None, "num_attention_heads": 8},
    "heads by layer": {"num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": [64, 64]},
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "infinite": b'{"model_type": "llama", "num_hidden_layers": Infinity, "hidden_size": NaN}',
    "huge number": b'{"num_hidden_layers": ' + b"9" * 10_000 + b"}",
    "many layers": {"num_hidden_layers": 10**8, "num_attention_heads": "64"},
    "negative": {"num_hidden_layers": -400_000, "num_attention_heads": 8, "hidden_size": 64},
    "surrogate": b'{"model_type": "\\ud800"}',
    "not UTF-8": b'\xff\xfe{"model_type": "llama"}',
    "empty": b"",
}


@pytest.mark.parametrize("config", ODD.values(), ids=ODD)
def test_odd_configs(whole_model, config):
    """The ones that were met."""
    folder = whole_model(config__json=config)
    look(folder)
    with contextlib.suppress(CarVllmError):
        assert read_model_facts(folder, "org/x").kv is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "chat_template.jinja", "other.safetensors"]
)
@pytest.mark.parametrize("kind", ["pipe", "dangling", "loop", "folder", "device"])
def test_a_file_of_another_kind_is_not_read(whole_model, name, kind):
    """A pipe that nobody writes to hangs nobody, and an endless device fills no memory."""
    folder = whole_model()
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        targets = {"dangling": "nowhere", "loop": name, "device": "/dev/zero"}
        path.symlink_to(targets[kind])
    look(folder)
    assert read_shapes(path) == {}
    with pytest.raises(UnservableModelError):
        read_bytes(path)


def test_a_file_with_nothing_to_say_yet_is_not_waited_for(whole_model, monkeypatch):
    """One of the kernel's is regular by its kind, and gives no bytes until there are some."""
    path = whole_model() / "config.json"
    waiting, unread = os.pipe()
    os.set_blocking(waiting, False)
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda _, *given, **named: real(waiting, *given, **named))
    assert read_bytes(path) == b""
    with pytest.raises(UnservableModelError, match="cannot be read"):
        load_object(path)
    assert read_shapes(path) == {}
    monkeypatch.undo()
    for end in (waiting, unread):
        os.close(end)


@pytest.mark.parametrize("target", ["nowhere", "model-2.safetensors"])
def test_weights_that_lead_nowhere_are_named(whole_model, target):
    """The server would load them too, so that they are in the way."""
    folder = whole_model()
    (folder / "model-2.safetensors").symlink_to(target)
    look(folder)
    assert "model-2.safetensors" in find_obstacle(folder).reason


def test_a_file_larger_than_any_such_file_is_not_read(tmp_path):
    """A sparse file of a terabyte is refused by its first bytes."""
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UnservableModelError, match="larger than 64 MB"):
        load_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    "text", ["/x\0y", "/" + "a" * 5000, "~nobody\0/x", "/dev/null", "/proc/self/mem"]
)
def test_paths_that_no_system_has_are_refused(text):
    """Neither a null byte nor a name of any length is an error of the system's own."""
    with pytest.raises(CarVllmError):
        parse_model_id(text)


def test_a_home_that_nobody_has(monkeypatch):
    """`~` without HOME and without an entry of the user's is no error of Python's own."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: (_ for _ in ()).throw(KeyError("uid")))
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert find_snapshot("org/odd") is None


TENSORS = st.one_of(
    ANYTHING,
    st.fixed_dictionaries({}, optional=dict.fromkeys(("shape", "dtype", "data_offsets"), ANYTHING)),
)
HEADERS = st.one_of(ANYTHING, st.dictionaries(st.text(max_size=8), TENSORS, max_size=3))


@SETTINGS
@given(HEADERS)
def test_any_header_of_weights_is_read_or_refused(tmp_path, header):
    """One such file in the Hub's cache once kept `car-vllm list` from showing the others."""
    text = json.dumps(header).encode()
    path = tmp_path / f"{abs(hash(text))}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    damage = find_damage(path)
    assert damage is None or damage.hint
    assert all(isinstance(size, int) for sizes in read_shapes(path).values() for size in sizes)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EPERM, errno.EIO])
def test_what_the_system_refuses_for_a_moment_is_not_remembered(tmp_path, monkeypatch, number):
    """A program that lives on finds weights well once it may read them, unchanged as they are."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_of(100))

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as refusing:
        refusing.setattr(Path, "open", refuse)
        damage = find_damage(path)
    assert os.strerror(number) in damage.reason
    assert damage.hint
    assert find_damage(path) is None


@settings(SETTINGS, max_examples=30)
@given(
    st.text(st.characters(), min_size=1, max_size=12), st.sampled_from(["", "/tmp/", "./", "o/"])
)
def test_any_text_is_a_model_or_an_error_of_this_package(text, before):
    """Also the name of a folder that is not written in UTF-8."""
    for make in (ChatVllmMlx, VllmMlxEmbeddings):
        with contextlib.suppress(CarVllmError):
            make(before + text)


def test_a_long_name_of_weights_is_looked_through_once():
    """A Hub may list what no disk can hold; looking through it would hold the program up."""
    assert not missing_shards({"1" * 900_000 + ".safetensors"})
    assert missing_shards({"model-00001-of-00002.safetensors"})
