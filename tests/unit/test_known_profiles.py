"""A model's profile: what is known of it is told anew, what the user chose stays."""

import copy
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes.published_configs import CONFIGS
from fakes.weights import write_sparse_weights
from langchain_core.runnables import ConfigurableField

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server.known_model import fitting_context
from langchain_car_vllm.server.plan import plan_for
from langchain_car_vllm.server.spec import ServerSpec

MODEL = "mlx-community/Qwen3-4B-4bit"


def configured(model: ChatVllmMlx) -> Any:
    field = ConfigurableField(id="temperature")
    return model.configurable_fields(temperature=field)._prepare(
        {"configurable": {"temperature": 0.5}}
    )[0]


def assigned(model: ChatVllmMlx) -> ChatVllmMlx:
    model.temperature = 0.5
    return model


COPIES: dict[str, Callable[[ChatVllmMlx], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "model_copy": lambda model: model.model_copy(update={"temperature": 0.5}),
    "assignment": assigned,
    "fields": lambda model: ChatVllmMlx(**dict(model)),
    "configurable": configured,
    "changed": lambda model: model.model_copy(
        update={"profile": model.profile | {"tool_calling": False}}
    ),
    "spread": lambda model: ChatVllmMlx(MODEL, profile={**model.profile, "tool_calling": False}),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_call_is_limited_by_what_the_user_chose_alone(way: str):
    """However the object was made of another one; what fits is the server's to say."""
    chosen = ChatVllmMlx(MODEL, profile={"max_input_tokens": 7})
    limits = [
        COPIES[way](model)._call(None, {}).given.get("max_input_tokens")
        for model in (ChatVllmMlx(MODEL), chosen)
    ]
    assert limits == [None, 7]


def test_what_is_known_makes_no_other_model():
    """Two of the same settings are equal, whichever was asked first."""
    first, second = ChatVllmMlx(MODEL), ChatVllmMlx(MODEL)
    assert first == second == copy.deepcopy(first) == pickle.loads(pickle.dumps(first))
    assert first.profile is not None
    assert json.loads(json.dumps(first.profile)) == first.profile
    first.profile["max_input_tokens"] = 5
    assert first._call(None, {}).given["max_input_tokens"] == 5


SHIPPED = {
    MODEL: ("Qwen3-4B", 2280),
    "mlx-community/Qwen3-8B-4bit": ("Qwen3-8B", 4620),
    "mlx-community/Qwen3-30B-A3B-4bit": ("Qwen3-30B-A3B", 17_200),
}


@pytest.mark.parametrize("gigabytes", ["6", "12", "24", "48"])
@pytest.mark.parametrize("model", SHIPPED)
def test_the_models_of_the_readme_are_known_before_the_download(
    model, gigabytes, tmp_path, monkeypatch
):
    """An agent that summarises at a share of the context can be made of them."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", gigabytes)
    name, size = SHIPPED[model]
    folder = tmp_path / "Qwen3-4bit"
    folder.mkdir()
    config = {**CONFIGS[name], "quantization": {"bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    write_sparse_weights(folder / "model.safetensors", size * 10**6)
    ahead = plan_for(ServerSpec(model, model))
    there = plan_for(ServerSpec(str(folder), model))
    assert ahead.launch.memory._replace(weights=0) == there.launch.memory._replace(weights=0)
    profile: Any = ChatVllmMlx(model).profile
    assert profile["max_input_tokens"] == there.launch.serving.max_input_tokens


def test_what_does_not_fit_is_not_said_to(monkeypatch):
    """The profile of a model that is too large has the least context, not what it was made for."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "4")
    model = "vllm-mlx/qwen3.6-35b-a3b:4bit"
    profile: Any = ChatVllmMlx(model).profile
    spec = ServerSpec("mlx-community/Qwen3.6-35B-A3B-4bit", "qwen3.6-35b-a3b:4bit")
    assert plan_for(spec).fits_memory is False
    assert profile["max_input_tokens"] == fitting_context(spec) == 8192


def test_what_is_known_is_read_once():
    """It takes most of the time of a construction."""
    read = []

    def look(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "fitting_context":
            read.append(frame)

    sys.setprofile(look)
    try:
        ChatVllmMlx(model=MODEL)
    finally:
        sys.setprofile(None)
    assert len(read) == 1
