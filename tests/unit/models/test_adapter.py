"""LoRA adapters: named, found, compared with their model, a part of the key, never passed over."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.errors import ConfigurationError, UnservableModelError
from langchain_car_vllm.models.adapter import check_adapter, find_adapter
from langchain_car_vllm.server.command import Launch
from langchain_car_vllm.server.launch_settings import launch_settings
from langchain_car_vllm.server.plan import plan_for
from langchain_car_vllm.server.supervisor.mends import adapters
from langchain_car_vllm.server.supervisor.mends.mend import UnknownCodeError

LAYER = "model.layers.{}.self_attn.q_proj"
CONFIG = {
    "fine_tune_type": "lora",
    "num_layers": 2,
    "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0},
    "model": "org/base",
}


def write_tensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write a file of float32 zeros in the safetensors format."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def lora(depth: int, into: int = 8, out: int = 6) -> dict[str, list[int]]:
    name = LAYER.format(depth)
    return {f"{name}.lora_a": [into, 2], f"{name}.lora_b": [2, out]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two layers."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    shapes = {f"{LAYER.format(depth)}.weight": [6, 8] for depth in range(2)}
    write_tensors(folder / "model.safetensors", shapes)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of that model."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    write_tensors(folder / "adapters.safetensors", lora(0) | lora(1))
    return folder


def test_it_is_a_part_of_the_key_and_of_the_name(model: Path, adapter: Path):
    """A server without it is another one, and metadata say which answered."""
    plain, tuned = ChatVllmMlx(model), ChatVllmMlx(model, adapter=adapter)
    assert tuned.adapter == str(adapter)
    assert tuned._spec().key() != plain._spec().key()
    assert tuned._spec().served_name == f"{model}+tuned"
    assert plan_for(tuned._spec()).facts.weights_bytes
    assert tuned._identifying_params != plain._identifying_params
    launch = Launch(str(model), offline=True, serving=Serving(multimodal=False))
    variables = launch_settings(tuned._spec(), launch, {})
    assert variables["CAR_VLLM_LAUNCH_ADAPTER"] == str(adapter)
    assert "CAR_VLLM_LAUNCH_ADAPTER" not in launch_settings(plain._spec(), launch, {})
    link = adapter.with_name("link")
    link.symlink_to(adapter)
    assert ChatVllmMlx(model, adapter=str(link))._spec().key() == tuned._spec().key()


@pytest.mark.parametrize("text", ["", "adapter", "org/name/more", "or g/name", "org/na\nme"])
def test_what_names_no_adapter_is_refused(text: str):
    """At construction."""
    with pytest.raises(ConfigurationError, match="`adapter` cannot be"):
        ChatVllmMlx("org/model", adapter=text)


def test_an_endpoint_of_somebody_elses_takes_none(adapter: Path):
    """Nothing could be loaded there."""
    with pytest.raises(ConfigurationError, match="needs a server that this package starts"):
        ChatVllmMlx("m", base_url="http://127.0.0.1:9/v1", adapter=str(adapter))


def test_a_repository_is_looked_for_in_the_hubs_cache(home: Path, adapter: Path):
    """It is not here before it was fetched, and counts once its weights are."""
    chat = ChatVllmMlx("org/model", adapter="me/tuned")
    assert chat._spec().served_name == "org/model+tuned"
    assert find_adapter("me/tuned") is None
    folder = home / ".cache" / "huggingface" / "hub" / "models--me--tuned"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots").mkdir()
    adapter.rename(folder / "snapshots" / "c0ffee")
    assert find_adapter("me/tuned") == folder / "snapshots" / "c0ffee"


def spoil_config(adapter: Path, **changes: object) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))


SPOILED = {
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "no `adapter_config.json`"),
    "no weights": (lambda a: (a / "adapters.safetensors").unlink(), "no `adapters.safetensors`"),
    "peft": (
        lambda a: (a / "adapters.safetensors").rename(a / "adapter_model.safetensors"),
        "PEFT",
    ),
    "cut off": (
        lambda a: (a / "adapters.safetensors").write_bytes(
            (a / "adapters.safetensors").read_bytes()[:-9]
        ),
        "cut off",
    ),
    "no rank": (lambda a: spoil_config(a, lora_parameters={"scale": 1}), "`lora_parameters`"),
    "no layers": (lambda a: spoil_config(a, num_layers="all"), "`num_layers`"),
    "odd type": (lambda a: spoil_config(a, fine_tune_type="magic"), "`magic`"),
    "config is a list": (lambda a: (a / "adapter_config.json").write_text("[]"), "JSON object"),
    "too deep": (
        lambda a: write_tensors(a / "adapters.safetensors", lora(1) | lora(7)),
        "beyond the 2",
    ),
    "other layers": (
        lambda a: write_tensors(a / "adapters.safetensors", {"transformer.h.0.x.lora_a": [8, 2]}),
        "does not have",
    ),
    "wider": (
        lambda a: write_tensors(a / "adapters.safetensors", lora(0, into=9)),
        "shape \\[9, 2\\]",
    ),
    "longer": (
        lambda a: write_tensors(a / "adapters.safetensors", lora(0, out=7)),
        "shape \\[2, 7\\]",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_cannot_be_served_is_refused_before_a_start(model: Path, adapter: Path, name: str):
    """Missing files, another base model, another form: with the reason and the cure."""
    spoil, reason = SPOILED[name]
    spoil(adapter)
    with pytest.raises(UnservableModelError, match=reason) as caught:
        plan_for(ChatVllmMlx(model, adapter=adapter)._spec())
    assert caught.value.hint


@pytest.mark.parametrize("name", SPOILED)
def test_what_no_model_could_use_is_refused_before_the_model_is_fetched(
    model: Path, adapter: Path, name: str
):
    """The same is said of it; whether it belongs to the model is seen once that is here."""
    absent = ChatVllmMlx("org/to-be-fetched", adapter=adapter)._spec()
    assert plan_for(absent)
    SPOILED[name][0](adapter)
    with pytest.raises(UnservableModelError) as caught:
        plan_for(ChatVllmMlx(model, adapter=adapter)._spec())
    if name in ("too deep", "other layers", "wider", "longer"):
        assert plan_for(absent)
        return
    with pytest.raises(UnservableModelError) as sooner:
        plan_for(absent)
    assert str(sooner.value) == str(caught.value)


def test_a_folder_that_is_not_there_is_no_adapter(tmp_path: Path):
    """It is told before the model is fetched, too."""
    absent = ChatVllmMlx("org/to-be-fetched", adapter=tmp_path / "none")._spec()
    with pytest.raises(UnservableModelError, match="does not exist"):
        plan_for(absent)


def test_a_route_without_adapters_is_refused(model: Path, adapter: Path):
    """The server's multimodal route loads models in another way."""
    check_adapter(adapter, model, multimodal=False)
    with pytest.raises(
        UnservableModelError, match="cannot load adapters for models that take media"
    ) as caught:
        check_adapter(adapter, model, multimodal=True)
    assert f"mlx_lm fuse --model {model} --adapter-path {adapter}" in (caught.value.hint or "")


def test_the_adapter_goes_on_the_served_model_and_on_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A draft model stays as it is; that it was loaded is noted for the supervisor."""
    served, draft = tmp_path / "served", tmp_path / "draft"
    served.mkdir()
    draft.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vllm-mlx", "serve", str(served)])

    class Model:
        adapter = None

        def eval(self) -> None:
            """Stop training."""

    def load_model(model_path, lazy=False, strict=True):
        return Model(), {"path": model_path}

    def load_adapters(model, adapter_path):
        model.adapter = adapter_path
        return model

    module = SimpleNamespace(load_model=load_model, load_adapters=load_adapters)
    adapters._load_on_top.apply(module)
    assert module.load_model(served)[0].adapter is None
    assert not (tmp_path / "adapter.loaded").exists()
    monkeypatch.setenv("CAR_VLLM_LAUNCH_ADAPTER", "/tuned")
    assert module.load_model(draft)[0].adapter is None
    model, config = module.load_model(served)
    assert (model.adapter, config) == ("/tuned", {"path": served})
    assert (tmp_path / "adapter.loaded").read_text() == "/tuned"
    with pytest.raises(UnknownCodeError):
        adapters._load_on_top.apply(SimpleNamespace(load_model=load_model))
